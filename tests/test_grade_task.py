"""`task=grade`, and the texts that a run writes for it."""

from __future__ import annotations

import contextlib
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import minllm
from minllm.config.compose import compose, perform
from minllm.data.source import Pair, PairSource, Source
from minllm.data.tales import Tales, read
from minllm.data.tales_pairs import TalesPairs
from minllm.errors import UserError
from minllm.generation.sampler import Sampling, SeedOfEach
from minllm.grading import samples
from minllm.grading.beginnings import cut, held_out
from minllm.grading.samples import generated, longest, write
from minllm.page.terminal import json_output
from minllm.runs.find import read_run
from minllm.schema.building import build
from minllm.tasks.grade import grade
from minllm.training import checkpoints
from tests.gradings import Words
from tests.instant import LITTLE, SMALL
from tests.test_report_schema import SCHEMA, validate_answer
from tests.test_study_report import Page, well_formed

CPU = torch.device("cpu")
FEW = Words(stories=5, beginnings=3, samples=2, max_new_tokens=12)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run that has trained for two steps."""
    folder = tmp_path_factory.mktemp("run") / "<run>"
    words = [*LITTLE, *SMALL, f"data.cache={folder.parent}/stores", "train.steps=2", "train.check=false"]
    minllm.train(minllm.compose([*words, "train.batch_size=2"]), folder)
    return folder


def written(run: Path, grader: Words = FEW):
    return write(read_run(run), run, "run", grader, CPU)


# ---- beginnings ----------------------------------------------------------------------------------


def test_stories_are_cut_in_mid_sentence_after_a_quarter_to_a_third():
    both = held_out(Tales(), 60)
    assert both == held_out(Tales(val_stories=3, train_stories=7), 60), "whatever the splits are"
    for beginning, rest in both:
        assert beginning[-1].isalnum() or beginning[-1] in ",;:"
        assert rest[0] == " " and rest[1].isalnum()
        assert 0.24 < len(beginning) / len(beginning + rest) <= 0.5
        assert read(beginning + rest).status == "complete"
    shares = [len(beginning) / len(beginning + rest) for beginning, rest in both]
    assert 0.25 < sum(shares) / len(shares) < 0.34
    assert len(set(both)) == 60


def test_beginnings_are_in_neither_split():
    known = set(itertools.islice(Tales().documents("train"), 50)) | set(Tales().documents("val"))
    assert not known & {beginning + rest for beginning, rest in held_out(Tales(), 60)}


class Texts(Source):
    texts: tuple[str, ...] = ()

    def documents(self, split):
        assert split == "val"
        return iter(self.texts)


class Pairs(PairSource):
    def pairs(self, split):
        return iter([Pair("two plus two", " is four"), Pair("", "nothing"), Pair("three", " is odd")])


def test_other_corpora_give_their_validation_texts(monkeypatch):
    text = "The cat sat on the mat, and it was glad. Then the dog came in, and the cat ran away quickly."
    monkeypatch.setattr(Texts, "texts", (text, "Short.", "One ___ two three four five six", text * 2))
    both = held_out(Texts(), 2)
    assert [beginning + rest for beginning, rest in both] == [text, text * 2], "no holes, and no single words"
    with pytest.raises(UserError, match=r"there are\s+2: set grader.beginnings=2"):
        held_out(Texts(), 3)


def test_of_pairs_the_given_part_is_the_beginning():
    assert held_out(Pairs(), 2) == [("two plus two", " is four"), ("three", " is odd")]
    given = next(iter(TalesPairs().pairs("val"))).given
    assert held_out(TalesPairs(), 1)[0][0] == given


def test_texts_without_spaces_and_long_texts_can_be_cut():
    chinese = "从前有座山" * 30
    beginning, rest = cut(chinese, 0)
    assert beginning + rest == chinese and 30 < len(beginning) < 60
    long = "word " * 10_000
    assert len(cut(long, 0)[0]) < 600
    assert cut("One. Two. Six. Ten.", 0) is None, "every space ends a sentence"


# ---- samples -------------------------------------------------------------------------------------


def test_samples_depend_on_their_seed_and_beginning_alone(run, monkeypatch):
    wrote = written(run)
    assert [sample.group for sample in wrote.samples] == [0, 1, 2, 3, 4, 5, 5, 6, 6, 7, 7]
    assert [sample.origin for sample in wrote.samples] == ["nothing"] * 5 + ["beginning"] * 6
    assert len({sample.text for sample in wrote.samples}) == 11, "each has random numbers of its own"
    assert wrote.samples[5].beginning == wrote.samples[6].beginning != wrote.samples[7].beginning
    monkeypatch.setattr(samples, "ROWS", 2)
    assert written(run).samples == wrote.samples, "and not on what is written at the same time"
    assert written(run, replace(FEW, beginnings=1)).samples == wrote.samples[:7]
    others = written(run, replace(FEW, seed=1)).samples
    assert not {sample.text for sample in others} & {sample.text for sample in wrote.samples}


def test_a_sample_is_what_generation_gives_with_its_seed(run):
    model, tokenizer, cfg = checkpoints.load(run)
    objective = build(cfg.objective)
    wrote = written(run)
    for sample, seed in zip(wrote.samples, [*range(5), 0, 1, 0, 1, 0, 1]):
        sampling = Sampling(temperature=1.0, top_k=None, top_p=1.0, min_p=0.0, max_new_tokens=12, seed=seed)
        assert objective.generate(model, tokenizer, [sample.beginning], sampling) == [sample.text]


def test_a_sample_may_become_as_long_as_the_longest_validation_text(run):
    cfg = read_run(run)
    texts = list(build(cfg.data).documents("val"))
    assert longest(build(cfg.data), written(run).tokenizer) == max(len(text.encode()) for text in texts)
    assert longest(Pairs(), written(run).tokenizer) == len("nothing") + 1


def test_less_is_written_at_a_time_if_memory_runs_out():
    asked = []

    class Hungry:
        def generate(self, model, tokenizer, prompts, sampling):
            asked.append(len(prompts))
            if len(prompts) > 13:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return [f"{prompt}{seed}" for prompt, seed in zip(prompts, sampling.seeds)]

    sampling = SeedOfEach(
        temperature=1.0, top_k=None, top_p=1.0, min_p=0.0, max_new_tokens=4, seed=0, seeds=range(60)
    )
    texts = generated(Hungry(), None, None, ["a"] * 60, sampling, "run")
    assert texts == [f"a{seed}" for seed in range(60)] and asked == [50, 25, *[12] * 5]
    hungrier = Hungry()
    hungrier.generate = lambda *args: (_ for _ in ()).throw(MemoryError())
    with pytest.raises(UserError, match="Memory ran out while run wrote a single text"):
        generated(hungrier, None, None, ["a"] * 3, replace(sampling, seeds=range(3)), "run")


def test_what_can_not_be_written_is_refused(run):
    with pytest.raises(UserError, match="nothing to grade: set grader.stories or grader.beginnings to 1"):
        written(run, replace(FEW, stories=0, beginnings=0))


# ---- the task ------------------------------------------------------------------------------------


def graded(run: Path, folder: Path):
    with contextlib.chdir(folder):
        return grade(read_run(run), Path("out"), run=str(run), grader=lambda: FEW)


def test_it_prints_and_writes_the_grades(run, tmp_path, capfd):
    with json_output():
        grading = graded(run, tmp_path)
    out, err = capfd.readouterr()
    line = json.loads(out)
    validate_answer(line)
    assert line["status"] == "graded" and line["run"] == str(run)
    value = grading.arms[0].values["right"]
    assert line["values"]["right"] == {"value": value.value, "interval": list(value.interval)}
    assert "| right words " in err and "--- best sample, number " in err and "Spelling isn't graded." in err
    assert "Each run wrote 5 texts from nothing and 6 continuations of 3 beginnings." in err
    files = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "out").iterdir()}
    assert sorted(files) == ["grades.html", "grades.json", "grades.md"]
    well_formed(files["grades.md"])
    page = Page(files["grades.html"])
    assert "Grades of <run>" in page.sections and "<run>" not in files["grades.html"]
    import jsonschema

    schema = {**SCHEMA["$defs"]["graded_run"], "$defs": SCHEMA["$defs"]}
    jsonschema.validate(json.loads(files["grades.json"]), schema, jsonschema.Draft202012Validator)
    assert graded(run, tmp_path).arms[0].values == grading.arms[0].values, "repeated, it's the same"


def test_a_judge_is_asked_once_for_each_text_and_its_key_is_written_nowhere(
    run, tmp_path, monkeypatch, capfd
):
    from tests.judge_server import judge_server

    def policy(request):
        schema = request.body["response_format"]["json_schema"]["schema"]["properties"]
        known = {"string": "Fine.", "integer": 7}
        return {name: option.get("enum", [known[option["type"]]])[0] for name, option in schema.items()}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-3141592653")
    with judge_server(policy, key="sk-3141592653") as server:
        words = ["task=grade", f"run={run}", "grader=judge", f"judge.base_url={server.base_url}"]
        words += [
            f"judge.model={server.model}",
            "grader.stories=3",
            "grader.beginnings=2",
            "grader.samples=1",
        ]
        for folder in ("first", "again"):
            grading = perform(compose([*words, "grader.max_new_tokens=8"]), tmp_path / folder)
            assert grading.arms[0].values["grammar"].value == 7
        assert len(server.requests) == 5
    texts = [path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    assert len(texts) >= 6 + 5 and not any("3141592653" in text for text in (*texts, *capfd.readouterr()))


@pytest.mark.parametrize(
    "words, sentence",
    [
        ("task=grade run={} optim.lr=1", "optim.lr would do nothing: task=grade reads only"),
        ("task=grade run={} judge.check=true", "because the grader asks no judge: add grader=judge"),
        ("task=compare runs=[a] judge.check=true", "because nothing is graded: add grader=judge"),
        ("task=grade run={} grader.storis=3", "no option 'storis'. Did you mean 'stories'"),
        ("grader=grammar", "grader is an option of task=compare and task=grade and search=verdict only"),
        ("judge=openai", "judge is an option of task=compare and task=grade and search=verdict only"),
        ("grader.stories=3", "There is no option 'grader.stories'|has no option 'stories'"),
    ],
)
def test_options_that_would_do_nothing_are_refused(run, words, sentence):
    with pytest.raises(UserError, match=sentence):
        compose(words.format(run).split())


@pytest.mark.parametrize("line", ["base_url: http://example.org/v1", "key: HOME"])
def test_a_file_from_elsewhere_can_not_choose_where_a_key_is_sent(run, tmp_path, line):
    (tmp_path / "judge").mkdir()
    node = "_target_: minllm.grading.judge.endpoint.Endpoint\nmodel: null\n"
    (tmp_path / "judge/mine.yaml").write_text(f"# mine\n{node}{line}\n")
    with pytest.raises(UserError, match="a file can't choose where texts and a key are sent"):
        compose(["task=grade", f"run={run}", "judge=mine"], config_dir=tmp_path)
    (tmp_path / "judge/mine.yaml").write_text(f"# mine\n{node}")
    compose(["task=grade", f"run={run}", "grader=judge", "judge=mine"], config_dir=tmp_path)


def test_graders_and_judges_are_chosen_like_other_options(run):
    cfg = compose(["task=grade", f"run={run}", "grader.stories=7"])
    assert cfg.choices.grader == "grammar" and build(cfg.grader).stories == 7
    assert "grader" not in compose(["task=compare", "runs=[a]"])
    assert build(compose(["task=compare", "runs=[a]", "grader=grammar"]).grader).margin == 0.02
