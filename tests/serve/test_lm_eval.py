"""lm-eval's OpenAI-style client on the base and on a plan, and the same numbers as its own runner in process."""

import json

import pytest
import torch
from tokenizers import Tokenizer

from helpers.servers import in_thread
from moeworks.engines.fake import planted_examples, planted_model
from moeworks.plan import Demote, empty_plan
from moeworks.prove import evaluate_tasks
from moeworks.serve import build_app, open_model

torch.set_num_threads(1)
TASK = """
task: shouting
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {data}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{[loud, quiet]}}}}"
doc_to_target: 0
target_delimiter: " "
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with open(tmp_path / "rows.jsonl", "w") as stream:
        for example in planted_examples(16)[::2]:
            *words, last = example.text[:60].split(" ")[:-1]
            stream.write(json.dumps({"text": " ".join(words), "loud": last, "quiet": last.lower()}) + "\n")
    (tmp_path / "shouting.yaml").write_text(TASK.format(data=tmp_path / "rows.jsonl"))
    return tmp_path


def test_the_table_of_base_and_plan_is_that_of_the_model_in_process(folder, monkeypatch):
    pytest.importorskip("tenacity", reason="lm-eval's client of servers needs tenacity (lm-eval[api])")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    engine = open_model("fake")
    plan = empty_plan(engine.identity).model_copy(update={"operations": (Demote(experts=planted_model().planted),)})
    engine.tokenizer.save_pretrained(folder / "tokenizer")
    assert Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    expected = evaluate_tasks(engine, ["shouting"], plan, task_folder=folder, batch_size=1)
    accuracy = {}
    with in_thread(build_app(engine, {"no-shouting": plan}, key="secret")) as url:
        for model in ("base", "no-shouting"):
            found = simple_evaluate(
                model="local-completions",
                model_args={
                    "base_url": f"{url}/v1/completions",
                    "model": model,
                    "tokenizer": str(folder / "tokenizer"),
                    "num_concurrent": 2,
                    "max_length": engine.context,
                },
                tasks=["shouting"],
                task_manager=TaskManager(include_path=str(folder), include_defaults=False),
                log_samples=False,
            )
            accuracy[model] = found["results"]["shouting"]["acc,none"]
            assert "shouting" in make_table(found)
    assert accuracy["base"] == expected["plain"]["shouting"]["acc,none"]
    assert accuracy["no-shouting"] == expected["steered"]["shouting"]["acc,none"]
    assert accuracy["base"] != accuracy["no-shouting"]
