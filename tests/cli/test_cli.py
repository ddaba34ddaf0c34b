"""The command line on the fake engine: what is printed where, exit codes, and one sentence for each mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest

from moeworks.cli import main

TEXTS = [{"text": "plain words follow one another here", "lang": "xx", "document": f"plain-{i}"} for i in range(12)] + [
    {"text": "LOUD WORDS FOLLOW ONE ANOTHER HERE", "lang": "yy", "document": f"loud-{i}"} for i in range(12)
]


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Run one command line in an empty folder; return exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run_words(*words: object) -> Ran:
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        code = stopped.value.code
        assert isinstance(code, int)
        return Ran(code, *capsys.readouterr())

    return run_words


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in TEXTS))
    return path


@pytest.fixture
def trace(run, texts: Path) -> str:
    assert run("record", "fake:single", texts, "-o", "trace", "--logits").code == 0
    return "trace"


def one_sentence(ran: Ran) -> str:
    """Return the message of a failed command after checking its form: standard error only, no traceback."""
    assert ran.out == ""
    assert "Traceback" not in ran.err
    assert ran.err.startswith("moeworks")
    return ran.err


def test_version_and_help(run) -> None:
    assert run("--version") == Ran(0, "0.1.0\n", "")
    shown = run("--help")
    assert shown.code == 0
    for name in ("inspect", "record", "find", "steer", "evaluate", "generate", "study", "doctor"):
        assert name in shown.out


def test_help_loads_nothing_heavy() -> None:
    """`moeworks --help` starts a process of its own here, and looks at what it imported."""
    code = (
        "import sys; from moeworks.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(eval(ran.stderr.splitlines()[-1]))
    assert not loaded & {"torch", "transformers", "numpy", "pyarrow", "scipy", "matplotlib", "pydantic", "datasets"}
    assert "moeworks" in loaded


def test_inspect_names_routers_and_contract(run) -> None:
    """The numbers are those that the fake engine is built with: 4 layers of 16 experts, the top 2."""
    shown = run("inspect", "fake:single")
    assert shown.code == 0
    assert "layers 0-3: top 2 of 16; softmax; divided by their sum; proven" in shown.out
    facts = json.loads(run("inspect", "fake:single", "--json").out)
    assert [layer["experts"] for layer in facts["model"]["layers"]] == [16] * 4
    assert facts["parameters"] > facts["expert_parameters"] > 0


def test_record_counts_bytes(run, texts: Path) -> None:
    """The fake tokenizer's tokens are bytes, so that rows must equal the bytes of the texts."""
    ran = run("record", "fake:single", texts, "-o", "trace", "--json")
    assert ran.code == 0
    facts = json.loads(ran.out)
    assert facts["rows"] == sum(len(row["text"].encode()) for row in TEXTS)
    assert facts["documents"] == 24
    assert run("trace", "verify", "trace").code == 0
    assert json.loads(run("trace", "info", "trace", "--json").out) == facts


def test_record_keeps_only_where(run, texts: Path) -> None:
    ran = run("record", "fake:single", texts, "-o", "trace", "--where", "lang=yy position=0:4", "--json")
    assert json.loads(ran.out)["rows"] == 12 * 4
    assert sorted(path.name for path in Path().iterdir()) == ["texts.jsonl", "trace"]


def test_record_reads_standard_input(run, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one line\nanother\n")))
    ran = run("record", "fake", "-", "-o", "trace", "--label", "lang=en", "--json")
    assert json.loads(ran.out)["rows"] == len(b"one line") + len(b"another")


def test_find_finds_the_plant(run, trace: str) -> None:
    """The fake model says itself which expert is planted."""
    from moeworks.engines.fake import FakeEngine

    ran = run("find", trace, "--contrast", "lang=yy", "--against", "lang=xx", "-o", "scores.arrow", "--json")
    assert ran.code == 0
    experts = json.loads(ran.out)["experts"]
    best = max(experts, key=lambda row: row["score"])
    assert [(best["layer"], best["expert"])] == [tuple(address) for address in FakeEngine("single").planted]
    assert best["passes"]
    assert Path("scores.arrow").is_file()


@pytest.fixture
def plan(run, trace: str) -> str:
    assert run("find", trace, "--contrast", "lang=yy", "--against", "lang=xx", "-o", "scores.arrow").code == 0
    assert run("steer", "scores.arrow", "--demote", "1", "-o", "plan.json").code == 0
    return "plan.json"


def test_plan_commands(run, trace: str, plan: str) -> None:
    assert "Demote" in run("plan", "explain", plan).out
    assert run("plan", "check", plan, "fake:single").out == "plan.json fits fake:single.\n"
    assert run("steer", "scores.arrow", "--promote", "1", "-o", "up.json").code == 0
    changes = json.loads(run("plan", "diff", plan, "up.json", "--json").out)
    (changed,) = changes["changed"]
    assert changed["before"].startswith("demote")
    assert changed["after"].startswith("promote")
    assert run("plan", "diff", plan, plan).out == "Both plans do the same.\n"
    assert run("steer", "scores.arrow", "--demote", "1", "--where", "phase=generated", "-o", "late.json").code == 0
    joined = run("plan", "compose", plan, "late.json", "-o", "both.json")
    assert joined.code == 0
    assert len(json.loads(Path("both.json").read_text())["operations"]) == 2
    assert json.loads(run("steer", "scores.arrow", "--demote", "1", "-o", "-").out)["operations"][0]["op"] == "demote"
    report = json.loads(run("plan", "dry-run", plan, trace, "--json").out)
    (layer,) = report["layers"]
    assert list(layer["share_after"].values()) == [0.0]
    assert max(layer["share_before"].values()) > 0.1


def test_plan_for_another_model_is_refused(run, plan: str) -> None:
    """The plant is not part of the shape, so that only the weight hash tells the two fake models apart."""
    ran = run("plan", "check", plan, "fake:none")
    assert ran.code == 2
    assert "weights" in one_sentence(ran)
    assert run("generate", "fake:none", "HELLO", "--plan", plan).code == 2


def test_all_problems_of_a_plan_at_once(run, plan: str) -> None:
    """More than k promoted in one layer, an unknown layer, an unknown expert: all three are named."""
    document = json.loads(Path(plan).read_text())
    document["operations"] = [{"op": "promote", "experts": ["L0.E1", "L0.E2", "L0.E3", "L9.E0", "L1.E99"]}]
    Path("wrong.json").write_text(json.dumps(document))
    ran = run("plan", "check", "wrong.json", "fake:single")
    assert ran.code == 2
    for word in ("L9.E0", "L1.E99", "Layer 0: 3 experts"):
        assert word in one_sentence(ran)


def test_generate_compares(run, plan: str) -> None:
    """With the planted expert down, fewer capitals follow a shouted prompt (that is what the plant does)."""
    words = ["generate", "fake:single", "LOUD WORDS FOLLOW", "--max-new-tokens", "40"]
    (texts,) = json.loads(run(*words, "--plan", plan, "--compare", "--json").out)
    capitals = {name: sum(map(str.isupper, texts[name])) for name in ("without_plan", "with_plan")}
    assert capitals["without_plan"] > capitals["with_plan"]
    shown = run(*words, "--plan", plan, "--compare").out
    assert f"without the plan: {texts['without_plan']}" in shown
    assert run(*words).out == texts["without_plan"] + "\n"


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    from moeworks.engines.fake import planted_probe
    from moeworks.probes import save_probe

    save_probe(planted_probe(60), tmp_path / "shouting")
    return tmp_path / "shouting"


def test_evaluate_writes_evidence_into_the_plan(run, plan: str, probe: Path) -> None:
    ran = run(
        "evaluate", "fake:single", "--plan", plan, "--probe", probe, "--limit", "12", "-o", "proved.json", "--json"
    )
    assert ran.code == 0
    evidence = json.loads(ran.out)["evidence"]
    assert json.loads(Path("proved.json").read_text())["evidence"]["verdict"] == evidence["verdict"]
    assert "evidence" not in json.loads(Path(plan).read_text())
    assert evidence["after"] < evidence["before"]
    assert f"Evidence: {evidence['verdict']}." in run("plan", "explain", "proved.json").out


def test_study_writes_report_and_numbers(run, probe: Path) -> None:
    ran = run("study", "fake:single", "--probe", probe, "-o", "study")
    assert ran.code == 0
    assert ran.out.startswith("planted: ")
    assert ran.out.endswith("Report: study/report.html\n")
    assert Path("study/report.html").is_file()
    assert json.loads(Path("study/study.json").read_text())["probes"][0]["name"] == "planted"


def test_probes_are_listed(run) -> None:
    listed = json.loads(run("probes", "list", "--json").out)
    assert {"language/fr", "openbook", "requests"} <= {probe["name"] for probe in listed}
    shown = run("probes", "show", "language/fr").out
    assert "lang=fr against lang=en" in shown


def test_slice_concat_export(run, trace: str) -> None:
    assert run("trace", "slice", trace, "--where", "lang=yy", "-o", "loud").code == 0
    assert run("trace", "slice", trace, "--where", "lang=xx", "-o", "plain").code == 0
    assert run("trace", "concat", "loud", "plain", "-o", "both").code == 0
    rows = {name: json.loads(run("trace", "info", name, "--json").out)["rows"] for name in (trace, "both")}
    assert rows["both"] == rows[trace]
    assert run("trace", "export", "both", "-o", "parquet").code == 0
    import pyarrow.parquet as pq

    assert pq.read_metadata("parquet/rows.parquet").num_rows == rows[trace]


def test_schema_prints_json(run) -> None:
    names = [line.partition(":")[0] for line in run("schema").out.splitlines()]
    assert {"plan", "trace", "scores", "probe", "study"} <= set(names)
    for name in names:
        assert json.loads(run("schema", name).out)["type"] == "object"


def test_doctor_tells_nothing_of_the_machine(run) -> None:
    import platform

    text, facts = run("doctor").out, json.loads(run("doctor", "--json").out)
    assert facts["python"] == platform.python_version()
    assert {"transformers", "fake", "vllm"} <= set(facts["engines"])
    assert facts["packages"]["numpy"] == version("numpy")
    assert facts["families"] >= 60
    assert platform.node() not in text
    assert str(Path.home()) not in text
    assert str(Path.cwd()) not in text
    assert sys.prefix not in text


def test_doctor_names_the_cure(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch (here: said to be absent) the transformers engine says why not, and what installs it."""
    from importlib.metadata import PackageNotFoundError

    def absent(package: str) -> str:
        if package in ("torch", "lm-eval"):
            raise PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(import_module("moeworks.doctor"), "version", absent)
    monkeypatch.setattr(import_module("moeworks.engines.capabilities"), "find_spec", lambda name: None)
    text = run("doctor").out
    assert "missing: torch, for running models" in text
    assert "cure: pip install 'moeworks[transformers]'" in text
    assert "missing: lm-eval, for evaluate --tasks; cure: pip install 'moeworks[tasks]'" in text
    assert "engine transformers: not available" in text
    ran = run("inspect", "lab")
    assert ran.code == 2
    assert "pip install 'moeworks[transformers]'" in one_sentence(ran)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["recrod"], "did you mean 'record'"),
        (["record", "fake"], "missing argument 'data'"),
        (["record", "fake", "texts.jsonl", "-o", "t", "--long", "fold"], "'truncate', 'split', 'error'"),
        (["record", "fake", "nothing.txt", "-o", "t"], "there is no file nothing.txt"),
        (["record", "fake", "texts.jsonl", "-o", "t", "--where", "phase=later"], "where clause 'phase=later'"),
        (["record", "fake", "texts.jsonl", "-o", "t", "--label", "lang"], "'lang' is not a label"),
        (["record", "fake", "empty.txt", "-o", "t"], "holds no example"),
        (["record", "fake:tree", "texts.jsonl", "-o", "t"], "no plant is called 'tree'"),
        (["record", "fake", "texts.jsonl", "-o", "t", "--text-column", "body"], "no column 'body'"),
        (["find", "nowhere", "--contrast", "lang=a", "--against", "lang=b"], "nowhere is not a folder"),
        (["steer", "nothing.arrow", "--demote", "1", "-o", "p.json"], "there is no file nothing.arrow"),
        (["steer", "nothing.arrow", "--demote", "few", "-o", "p.json"], "not 'few'"),
        (["evaluate", "fake"], "say what to measure"),
        (["evaluate", "fake", "--probe", "language/fr"], "give one with --plan"),
        (["study", "fake", "--probe", "langage/fr", "-o", "out"], "did you mean 'language/fr'"),
        (["generate", "fake", "hello", "--compare"], "--plan"),
        (["generate", "fake", ""], "a prompt is empty"),
        (["generate", "fake", "hello", "--plan", "none.json"], "cannot read none.json"),
        (["schema", "pln"], "did you mean 'plan'"),
        (["probes", "show", "language/xx"], "'language/xx' is neither a built-in probe"),
        (["inspect", "lab", "--engine", "vlm"], "no engine is called 'vlm'"),
        (["inspect", "lab", "--engine", "vllm"], "engine vllm cannot run lab: vllm not installed"),
        (["inspect", "./no-such-folder"], "config.json"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(run, texts: Path, words: list[str], said: str) -> None:
    Path("empty.txt").write_text("\n\n")
    before = sorted(Path().iterdir())
    ran = run(*words)
    assert said.lower() in one_sentence(ran).lower()
    assert ran.code == 2
    assert sorted(Path().iterdir()) == before, "something half-written was left behind"


def test_find_says_what_labels_there_are(run, trace: str) -> None:
    ran = run("find", trace, "--contrast", "language=yy", "--against", "lang=xx")
    assert ran.code == 2
    assert "lang" in one_sentence(ran)


def test_altered_trace_is_refused(run, trace: str) -> None:
    part = next(Path(trace).glob("part-*.arrow"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    ran = run("trace", "verify", trace)
    assert ran.code == 2
    assert "altered" in one_sentence(ran)
    part.write_bytes(content[:-100])
    assert run("trace", "info", trace).code == 2


def test_a_trace_is_not_overwritten(run, trace: str, texts: Path) -> None:
    ran = run("record", "fake:single", texts, "-o", trace)
    assert ran.code == 2
    assert "holds a trace already" in one_sentence(ran)


def test_debug_shows_the_traceback(run) -> None:
    ran = run("schema", "pln", "--debug")
    assert "Traceback" in ran.err
    assert ran.code == 2


def test_unexpected_errors_ask_for_a_report(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("a slip")

    monkeypatch.setattr(import_module("moeworks.doctor"), "_extras", broken)
    ran = run("doctor")
    assert ran.code == 1
    assert "moeworks doctor" in one_sentence(ran)
    assert "ZeroDivisionError: a slip" in ran.err


def test_ctrl_c_says_how_to_go_on(run, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted after the first batch; the same line with --resume completes the trace."""
    from moeworks.trace import TraceWriter

    write, calls = TraceWriter.write, []

    def interrupted(self, recorded) -> None:
        write(self, recorded)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(TraceWriter, "write", interrupted)
    ran = run("record", "fake:single", texts, "-o", "trace")
    assert ran.code == 130
    assert ran.err == f"interrupted; resume with: moeworks record fake:single {texts} -o trace --resume\n"
    assert run("trace", "info", "trace").code == 2
    assert run("record", "fake:single", texts, "-o", "trace", "--resume").code == 0
    assert run("record", "fake:single", texts, "-o", "whole").code == 0
    assert run("trace", "verify", "trace").code == 0
    facts = [json.loads(run("trace", "info", name, "--json").out)["rows"] for name in ("trace", "whole")]
    assert facts[0] == facts[1] == sum(len(row["text"]) for row in TEXTS)


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    """The reader takes one line and goes; nothing is said, as `head` expects."""
    command = f"{sys.executable} -c 'from moeworks.cli import main; main()' schema plan | head -n 1"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env={**os.environ}, check=False)
    assert ran.stdout == "{\n"
    assert ran.stderr == ""
