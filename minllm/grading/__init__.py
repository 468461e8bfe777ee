"""What the texts of a trained model are worth.

    run ── samples.write ──▶ Written ── grader.grade ──▶ Grades ── intervals ──▶ tables, bars, report
            beginnings and what the model         a value of each measure
            wrote after them                      for each sample

A grader knows what it measures and nothing about models: `grammar` is exact, for texts whose grammar is known, and
`judge` asks a language model.
"""
