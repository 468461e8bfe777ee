"""The benchmark: who competes, the processes that they compete in, and the page that comes out."""

import importlib.util
import json
import time
from dataclasses import asdict

import pytest
import torch
from omegaconf import OmegaConf

from minllm.bench import startup
from minllm.bench.contestants import MAKERS, SETTINGS, SHAPES, Shape, config, step_run
from minllm.bench.mixers import AS_THEIRS, OURS_AS_THEIRS, THEIRS, WORDS, chosen_mixers, mixer_jobs
from minllm.bench.report import Figure, MixerRow, Ratio, Report, table
from minllm.bench.worker import Contest, Job, Worker
from minllm.config.compose import compose, perform
from minllm.errors import UserError
from minllm.schema.checking import validate
from minllm.tasks import bench
from minllm.training import step

REC = chosen_mixers(None)
TINY = Shape(32, 2, 2, 1, head_dim=16, hidden=48, seq_len=16, batch_size=2, vocab_size=67)
EAGER = SETTINGS["eager_fp32"]
CPU = torch.device("cpu")


def made(name, cfg=None):
    pytest.importorskip("transformers")
    cfg = cfg or config(TINY, EAGER)
    contestant = MAKERS[name](TINY, cfg, CPU)
    return contestant, step_run(contestant, TINY, EAGER, cfg, CPU)


def as_theirs(mixer, shape=TINY):
    """Return the configuration of which minllm's model is transformers' with this mixer."""
    return config(shape, EAGER, mixer, [*WORDS.get(mixer, []), *AS_THEIRS[mixer]])


def test_both_contestants_are_of_the_same_size():
    sizes = {sum(p.numel() for p in made(name)[0].model.parameters()) for name in MAKERS}
    assert len(sizes) == 1


def test_both_contestants_have_the_same_loss_with_the_same_weights():
    (ours, our_run), (theirs, their_run) = made("minllm"), made("transformers")
    weights = theirs.model.state_dict()
    ours.model.load_state_dict(translated(weights), strict=True)
    losses = [step.whole_batch_gradient(run, run.objective.loss).item() for run in (our_run, their_run)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    norms = [step.update(run, 1e-3)["grad_norm"].item() for run in (our_run, their_run)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def translated(llama):
    """Return Llama's weights under minllm's names."""
    weights = {"embedding": llama["model.embed_tokens.weight"], "norm.weight": llama["model.norm.weight"]}
    for i in range(TINY.n_layers):
        old, attn, mlp = f"model.layers.{i}", f"layers.{i}.attn", f"layers.{i}.mlp"
        parts = {
            f"{attn}.before.weight": ["input_layernorm"],
            f"{attn}.words.attn.qkv.weight": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            f"{attn}.words.attn.out.weight": ["self_attn.o_proj"],
            f"{mlp}.before.weight": ["post_attention_layernorm"],
            f"{mlp}.words.mlp.gate_up.weight": ["mlp.gate_proj", "mlp.up_proj"],
            f"{mlp}.words.mlp.down.weight": ["mlp.down_proj"],
        }
        for name, olds in parts.items():
            weights[name] = torch.cat([llama[f"{old}.{one}.weight"] for one in olds])
    return weights


def test_recurrent_gemma_has_the_same_loss_with_the_same_weights():
    cfg = as_theirs("rglru")
    (ours, our_run), (theirs, their_run) = made("minllm", cfg), made("transformers", cfg)
    ours.model.load_state_dict(translated_gemma(theirs.model.state_dict()), strict=True)
    losses = [step.whole_batch_gradient(run, run.objective.loss).item() for run in (our_run, their_run)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # its √dim is rounded to bf16
    norms = [step.update(run, 1e-3)["grad_norm"].item() for run in (our_run, their_run)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def translated_gemma(gemma):
    """Return RecurrentGemma's weights under minllm's names."""
    weights = {
        "embedding": gemma["model.embed_tokens.weight"],
        "norm.weight": 1 + gemma["model.final_norm.weight"],
    }
    for i in range(TINY.n_layers):
        old, new = f"model.layers.{i}", f"layers.{i}"
        block, rec, mlp = f"{old}.temporal_block", f"{new}.rec.words.rec", f"{new}.mlp.words.mlp"
        for kind in ("weight", "bias"):
            both = [gemma[f"{block}.linear_{x}.{kind}"] for x in "yx"]
            weights[f"{rec}.gate_x.{kind}"] = torch.cat(both)
            weights[f"{rec}.out.{kind}"] = gemma[f"{block}.linear_out.{kind}"]
            both = [gemma[f"{old}.mlp_block.{x}_proj.{kind}"] for x in ("gate", "up")]
            weights[f"{mlp}.gate_up.{kind}"] = torch.cat(both)
            weights[f"{mlp}.down.{kind}"] = gemma[f"{old}.mlp_block.down_proj.{kind}"]
            both = [gemma[f"{block}.rg_lru.{x}_gate_{kind}"] for x in ("input", "recurrent")]
            weights[f"{rec}.gates_{'HKM' if kind == 'weight' else 'bias_HM'}"] = torch.cat(both, -1)
        weights[f"{rec}.conv.weight_WC"] = gemma[f"{block}.conv_1d.weight"][:, 0].flip(-1).T
        weights[f"{rec}.conv.bias"] = gemma[f"{block}.conv_1d.bias"]
        weights[f"{rec}.decay_F"] = gemma[f"{block}.rg_lru.recurrent_param"]
        weights[f"{new}.rec.before.weight"] = 1 + gemma[f"{old}.temporal_pre_norm.weight"]
        weights[f"{new}.mlp.before.weight"] = 1 + gemma[f"{old}.channel_pre_norm.weight"]
    return weights


@pytest.mark.parametrize("mixer", [mixer for mixer in AS_THEIRS if mixer in REC])
def test_a_mixer_is_compared_with_a_model_of_its_size(mixer):
    pytest.importorskip("transformers")
    shape = SHAPES["S3"]
    cfg = as_theirs(mixer, shape)
    ours, theirs = (
        sum(p.numel() for p in MAKERS[name](shape, cfg, CPU).model.parameters()) for name in MAKERS
    )
    assert ours == pytest.approx(theirs, rel=0.02)


PLANNED = {
    "gated_deltanet": {"n_heads": 2, "n_value_heads": 2, "head_dim": 16, "value_dim": 16, "conv_width": 4},
    "mamba": {"expand": 2, "n_state": 16, "conv_width": 4, "dt_rank": None},
    "mamba2": {"expand": 2, "head_dim": 64, "n_state": 64, "n_groups": 1, "conv_width": 4},
}
"""Options of mixers that minllm hasn't got yet and transformers has."""


@pytest.mark.parametrize("mixer", AS_THEIRS)
def test_each_of_their_classes_takes_a_step(mixer):
    if mixer in REC:
        cfg = as_theirs(mixer)
    else:
        cfg = config(TINY, EAGER)
        OmegaConf.set_struct(cfg, False)
        cfg.model.rec, cfg.choices["model/rec"] = PLANNED[mixer], mixer
    _, run = made("transformers", cfg)
    losses = []
    for _ in range(2):
        losses.append(step.whole_batch_gradient(run, run.objective.loss).item())
        step.update(run, 1e-2)
    assert losses[1] < losses[0]


def test_a_worker_takes_turns_and_says_why_it_fails():
    with Worker(Job("minllm", keep_pages=True, shape=TINY, setting=EAGER, device="cpu")) as worker:
        takes_turns(worker.ask)
        for _ in range(2):  # the second question reaches no process any more
            with pytest.raises(RuntimeError, match="unexpected keyword argument 'minutes'"):
                worker.ask("train", minutes=1.0)
    assert worker.process.returncode is not None


def test_an_impossible_job_is_refused():
    impossible = Shape(32, 2, 3, 2, head_dim=16, hidden=48, seq_len=16, batch_size=2, vocab_size=67)
    with pytest.raises(UserError, match="n_heads=3"):
        Contest(Job("minllm", keep_pages=False, shape=impossible, setting=EAGER, device="cpu"))


def test_a_worker_does_the_same_with_transformers(monkeypatch):
    """What a worker does with its job, without the process; the test above has that."""
    pytest.importorskip("transformers")
    monkeypatch.setattr("minllm.training.memory.keep_pages", lambda: None)  # would change this process
    contest = Contest(Job("transformers", keep_pages=True, shape=TINY, setting=EAGER, device="cpu"))
    takes_turns(lambda name, **arguments: getattr(contest, name)(**arguments))


def takes_turns(ask):
    ask("warm_up")
    turns = [ask("train", seconds=0.05) for _ in range(2)]
    assert all(turn["steps"] >= 1 and turn["seconds"] >= 0.05 for turn in turns)
    assert turns[1]["loss"] < turns[0]["loss"]
    assert ask("memory")["bytes"] > 2**20
    assert ask("generate", rows=3, new_tokens=4)["tokens"] == 12


def test_workers_train_with_a_mixer_in_attentions_place(monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr("minllm.training.memory.keep_pages", lambda: None)  # would change this process
    shape = Shape(32, 2, 2, 1, head_dim=16, hidden=48, seq_len=16, batch_size=8, vocab_size=67)
    jobs = mixer_jobs("rglru", [], shape, EAGER, CPU)
    for who in (OURS_AS_THEIRS, THEIRS):
        contest = Contest(Job.read(json.dumps(asdict(jobs[who]))))
        losses = [contest.train(seconds=0.01)["loss"] for _ in range(2)]
        assert losses[1] < losses[0], who


class Answers:
    """A worker that has been everywhere already: `speed` times as fast as one step a second."""

    def __init__(self, speed):
        self.speed = speed

    def ask(self, name, **arguments):
        tokens = arguments.get("rows", 1) * arguments.get("new_tokens", 1)
        return {"steps": 1, "tokens": tokens, "seconds": 1 / self.speed, "bytes": 100 / self.speed}


@pytest.fixture
def quick(monkeypatch):
    """Workers and processes that answer at once: minllm is twice as fast as transformers."""
    import contextlib

    @contextlib.contextmanager
    def started(jobs):
        theirs = {True: 1.6, False: 1}
        yield {
            who: Answers(2 if job.contestant == "minllm" else theirs[job.keep_pages])
            for who, job in jobs.items()
        }

    monkeypatch.setattr(bench, "started", started)
    monkeypatch.setattr(bench, "SHAPES", {"S1": TINY, "S3": TINY})
    monkeypatch.setattr(bench, "LIMIT_SIZE", 64)
    monkeypatch.setattr(bench, "first_step_seconds", lambda: 4.0)
    monkeypatch.setattr(bench, "import_seconds", lambda: 1.0)
    monkeypatch.setattr(bench, "require_transformers", lambda: None)
    monkeypatch.setattr(bench, "choose_precision", lambda wanted, device: ("fp32", "bf16 is slow here"))


def run_bench(folder, *overrides):
    cfg = compose(["task=bench", "train.device=cpu", *overrides])
    validate(cfg)
    keys = ["measure", "shapes", "settings", "seconds", "mixers", "lengths"]
    own = OmegaConf.to_container(OmegaConf.masked_copy(cfg, keys))
    return bench.bench(cfg, folder, **own)


def test_the_page_and_the_file_say_what_was_found(quick, tmp_path, capsys):
    found = run_bench(tmp_path)
    page = capsys.readouterr().out
    assert json.loads((tmp_path / "bench.json").read_text()) == found
    ratios = {ratio["what"]: ratio for ratio in found["ratios"]}
    assert ratios["S1 eager fp32, training, transformers"]["median"] == pytest.approx(2)
    assert ratios["S1 eager fp32, training, transformers"]["verdict"] == "at least 1.4: met"
    assert ratios["S1 eager fp32, training, transformers, same malloc"]["verdict"] == ""
    assert ratios["S1 eager fp32, peak memory, transformers"]["median"] == pytest.approx(0.5)
    assert ratios["S3, generating 16 x 256, transformers"]["verdict"] == "at least 1.5: met"
    assert ratios["start-up, import torch"]["verdict"] == "at most 3: missed"
    assert "start-up, import torch" in page and "at most 3: missed" in page
    assert all(figure["share_of_limit"] > 0 for figure in found["figures"] if "training" in figure["what"])


def test_slow_bf16_is_replaced_in_words(quick, tmp_path, capsys):
    found = run_bench(tmp_path, "measure=[training]", "shapes=[S1]")
    assert (
        found["notes"][0] == "No bf16, fp32 instead: bf16 is slow here."
        and "torch.compile" in found["notes"][1]
    )
    assert list(found["limits"]) == ["S1 eager fp32", "S1 compiled fp32"]
    # a floor for bf16 is none for what stands in for it
    verdicts = {ratio["what"]: ratio["verdict"] for ratio in found["ratios"]}
    assert verdicts["S1 compiled fp32, training, transformers"] == ""
    assert "No bf16" in capsys.readouterr().out


def test_mixers_stand_in_one_table(quick, tmp_path, capsys):
    words = ["measure=[mixers]", "settings=[eager_fp32]"]
    found = run_bench(tmp_path, *words, "mixers=[rglru,conv]", "lengths=[256,1024]")
    assert json.loads((tmp_path / "bench.json").read_text()) == found
    assert [row["mixer"] for row in found["mixers"]] == ["attention", "rglru", "conv"]
    attention, rglru, conv = found["mixers"]
    assert verdicts(attention) == dict.fromkeys(["s/token, T 512", "s/token, T 1024", "s/token, T 2048"], "")
    assert verdicts(rglru) == verdicts(conv) | {"transformers": "at least 2: met"}
    assert verdicts(conv) == {
        "attention, T 256": "at least 0.25: met",
        "attention, T 1024": "",
        "s/token, T 512": "",
        "s/token, T 1024": "",
        "s/token, T 2048": "at most 1.5: met",
    }
    head, *rows = [
        line for line in capsys.readouterr().out.splitlines() if "T 2048" in line or "eager" in line
    ]
    assert head.split()[0] == "tokens/s" and head.endswith("peak memory") and len(rows) == 3


def verdicts(row):
    ratios = [*row["beside_attention"], *row["beside_theirs"], *row["growth"]]
    return {ratio["what"]: ratio["verdict"] for ratio in ratios}


def test_a_mixer_meets_each_rival_at_the_same_tokens_a_step():
    shape = SHAPES["S3"]
    jobs = mixer_jobs("rglru", [256, 1024], shape, SETTINGS["compiled_fp32"], CPU)
    assert {job.shape.tokens_per_step for job in jobs.values()} == {4096}
    assert [who for who, job in jobs.items() if job.mixer == "attention"] == [
        "attention, T 256",
        "attention, T 1024",
    ]
    assert [who for who, job in jobs.items() if not job.setting.compiled] == ["transformers"]
    assert len(mixer_jobs("attention", [256, 1024], shape, EAGER, CPU)) == 4
    # the row's own figure is at the shape's length, whatever else is asked for
    assert next(iter(mixer_jobs("conv", [128], shape, EAGER, CPU))) == "conv, T 256"


def test_a_bound_that_is_missed_says_so_in_the_table():
    own = Figure("conv", "conv, T 256", 1000.0, None, 2**20)
    bounded = [Ratio("attention, T 256", 0.1, 0.1, 0.1, at_least=0.25)]
    here = {"cpu": "a processor", "threads": 2, "gpu": None, "torch": "2"}
    report = Report(here, mixers=[MixerRow("eager fp32", "conv", [own], bounded, [], [])])
    page = "\n".join(report.lines())
    assert "0.10 (missed)" in page and "at least 0.25" in page


def test_without_transformers_only_the_start_is_measured(monkeypatch, quick, tmp_path):
    monkeypatch.undo()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "transformers" else find(name)
    )
    with pytest.raises(UserError, match=r"minllm\[test\]"):
        run_bench(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        "shapes=[S2]",
        "settings=[eager]",
        "measure=[all]",
        "seconds=0",
        "mixers=[rglu]",
        "lengths=[300]",
        "lengths=[0]",
    ],
)
def test_an_option_that_means_nothing_is_refused(words, tmp_path):
    with pytest.raises(UserError, match=words.partition("=")[0]):
        run_bench(tmp_path, *(() if words.startswith("measure") else ("measure=[mixers]",)), words)


def test_a_mixer_that_is_misspelt_is_refused_with_a_suggestion():
    with pytest.raises(UserError, match="Did you mean 'rglru'"):
        chosen_mixers(["conv", "rglu"])
    assert chosen_mixers(["rglru", "rglru"]) == ["rglru"] and {"conv", "rglru"} <= set(chosen_mixers(None))


def test_the_way_to_the_first_step_is_timed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "words.txt"
    text.write_text("\n\n".join(f"Sentence number {i} is short." for i in range(200)))
    data = ["data=text", f"data.path={text}", "tokenizer=bytes", "model.dim=16", "data.seq_len=16"]
    begun = time.perf_counter()
    seconds = startup.first_step_seconds([*startup.TINY, *data])
    assert 0.1 < seconds < time.perf_counter() - begun


def test_a_run_that_never_comes_to_a_step_is_an_error():
    with pytest.raises(RuntimeError, match="n_layrs"):
        startup.first_step_seconds(["model.n_layrs=3"])


def test_ratios_are_compared_turn_by_turn():
    # a machine that slows down to a tenth in the middle changes no ratio
    ratio = Ratio.of("x", [20, 2, 22], [10, 1, 10], at_least=2.0)
    assert (ratio.median, ratio.low, ratio.high, ratio.verdict) == (2, 2, 2.2, "at least 2: met")
    assert Ratio.of("x", [3], [1], at_most=1.0).verdict == "at most 1: missed"


def test_a_table_stands_in_columns():
    lines = table(["who", "tokens/s"], [["minllm", "1,200"], ["another", "90"]])
    assert lines == ["", "who      tokens/s", "minllm      1,200", "another        90", ""]
    assert table(["who"], []) == []


def test_a_report_without_limits_has_no_shares():
    here = {"cpu": "a processor", "threads": 2, "gpu": None, "torch": "2"}
    report = Report(here, figures=[Figure("S1, generating", "minllm", 1234.5)])
    assert report.lines()[0] == "a processor, 2 threads, torch 2"
    assert any(line.endswith("1,234") or line.endswith("1,235") for line in report.lines())


def test_data_is_measured_beside_others(tmp_path, monkeypatch, capsys):
    """With real text, some of which others encode in the same number of tokens or nearly so."""
    monkeypatch.setattr("minllm.bench.data.TEXT_BYTES", 60_000)
    monkeypatch.setattr("minllm.bench.data.BATCHES", 1)
    monkeypatch.setattr("minllm.bench.data.TURNS", 1)
    words = ["task=bench", "measure=[data]", "lengths=[32,64]", "tokenizer=tales_512"]
    words += ["data.train_stories=120", "data.val_stories=2", f"data.cache={tmp_path / 'stores'}"]
    found = perform(compose(words), tmp_path / "run")
    ours, *theirs = found["encodings"]
    assert ours["tokenizer"] == "minllm" and ours["minllm_times_as_fast"] == 1
    assert [one["tokenizer"] for one in theirs][0] == "tokenizers"
    for one in theirs:
        assert one["bytes_per_token"] == pytest.approx(ours["bytes_per_token"], rel=0.15)
    named = {row["packing"]: row for row in found["rows"]}
    assert set(named) == {f"{kind} {length}" for kind in ("concat", "pad", "pack") for length in (32, 64)}
    assert named["pad 64"]["padding"] > named["pack 64"]["padding"] and named["concat 64"]["padding"] == 0
    assert "MB/s" in capsys.readouterr().out
    with pytest.raises(UserError, match="type tokenizer=tales_4096"):
        perform(compose([*words, "tokenizer=bytes"]), tmp_path / "run")
