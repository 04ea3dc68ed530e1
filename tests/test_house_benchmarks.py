"""The benchmark itself: its floor, the answers of its baselines, its records. Times nothing."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def modules(monkeypatch):
    """The benchmark's modules, which are scripts beside one another and no package."""
    import importlib

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "runners"))
    names = "bench bench_serving floor machine replacement report torch_loop throughput workload"
    yield {name: importlib.import_module(name) for name in names.split()}
    for name in list(sys.modules):  # their names are too plain to stay
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def reference_machine(modules, **changes):
    peaks = {"threads": 2, "float_ops": 4e11, "bf16_ops": 8e11, "avx2_int8_ops": 6e11}
    peaks |= {"int8_ops": 16e11, **modules["machine"].REFERENCE}
    return modules["machine"].Machine(**(peaks | changes))


@pytest.mark.parametrize("width, expected", [(5, 96), (32, 96), (128, 96), (512, 167)])
def test_floor_is_the_published_one(modules, width, expected):
    """0.5B in bf16 on 6.4 TFLOP/s and 30 GB/s, prompt 150."""
    machine = reference_machine(modules)
    found = modules["floor"].floor_ms(machine, "0.5b", "amx", "bfloat16", width, 150)
    assert found == pytest.approx(expected, abs=1)


def test_floor_of_eight_requests_together(modules):
    machine = reference_machine(modules)
    found = modules["floor"].floor_ms(machine, "0.5b", "amx", "bfloat16", 5, 150, requests=8)
    # 206 ms as published, which counts the last layer for rows that nobody reads: 13.1M x 149 x 8.
    behind = modules["workload"].layer_parameters_behind_attention("0.5b")
    assert behind == 896 * (896 + 3 * 4864)
    assert found + 1e3 * 2 * 8 * 149 * behind / 6.4e12 == pytest.approx(206, abs=1)


def test_a_disturbed_machine_voids_the_run(modules):
    assert reference_machine(modules).doubts() == []
    assert "bytes_per_s = 2e+10" in reference_machine(modules, bytes_per_s=2e10).doubts()[0]
    assert "no AMX" in reference_machine(modules, tile_bf16_ops=0).doubts()[0]


def test_torch_loop_finds_what_the_engine_finds(modules, tmp_path):
    """A baseline that searched wrongly would be no baseline."""
    import torch
    import transformers

    from genrecall import kernels
    from genrecall.trtllm_bridge import Engine, checkpoint

    made = modules["workload"].write_workload(tmp_path, "tiny", 500, 20)
    checkpoint.convert(tmp_path / "checkpoint", tmp_path / "model.gguf", "float32")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "checkpoint", dtype=torch.float32
    ).eval()
    token_ids = np.load(tmp_path / "arrays.npz")["token_ids"]
    loop = modules["torch_loop"]
    search = loop.Search(model, loop.Trie(made.sids, token_ids.shape[1]), token_ids)
    index = kernels.RecallIndex.build(
        [token_ids.shape[1]] * len(token_ids), np.arange(len(made.sids), dtype=np.int64), made.sids
    )
    engine = Engine(str(tmp_path / "model.gguf"), num_threads=1)
    for width in (1, 7, 40):
        with torch.inference_mode():
            sids, score = search(torch.from_numpy(made.prompts[:1]), width)
        out = engine.decode(made.prompts[:1].astype(np.int32), [20], index, beam_width=width)
        np.testing.assert_array_equal(out["sids"][0], sids.numpy())
        np.testing.assert_allclose(out["score"][0], score.numpy(), atol=1e-4)


@pytest.mark.slow
def test_peaks_are_measured(modules):
    found = modules["machine"].measure(1)
    assert found.float_ops > 1e9 and found.bytes_per_s > 1e8
    assert found.peak_ops("avx2", "int8") >= 0.6 * found.float_ops
    # What one core can do in a cycle at 8 GHz; more is a loop that the compiler took away.
    assert found.float_ops < 8e9 * 2 * 32 and found.avx2_int8_ops < 8e9 * 2 * 64


@pytest.mark.parametrize(
    ("isa", "dtype", "changes", "expected"),
    [
        ("amx", "bfloat16", {}, "tile_bf16_ops"),
        ("amx", "int8", {}, "tile_int8_ops"),
        ("amx", "float32", {}, "float_ops"),
        ("avx512_bf16", "bfloat16", {}, "bf16_ops"),
        ("avx512_bf16", "int8", {}, "int8_ops"),
        ("avx512", "bfloat16", {}, "float_ops"),
        ("avx512", "int8", {}, "int8_ops"),
        ("avx512", "int8", {"int8_ops": 0}, "avx2_int8_ops"),
        ("avx2", "int8", {}, "avx2_int8_ops"),
        ("avx2", "bfloat16", {}, "float_ops"),
        ("scalar", "int8", {}, "float_ops"),
        ("avx512_bf16", "w8", {}, "float_ops"),
        ("amx", "w8", {}, "tile_bf16_ops"),
    ],
)
def test_the_peak_is_that_of_the_units_in_use(modules, isa, dtype, changes, expected):
    machine = reference_machine(modules, **changes)
    assert machine.peak_ops(isa, dtype) == getattr(machine, expected)


def test_one_command_measures_stores_draws_and_compares(modules, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(modules["machine"], "measure", lambda _: reference_machine(modules))
    monkeypatch.setenv("GENRECALL_INDEX_POLL_MS", "20")
    arguments = ["--shapes", "tiny", "--repeats", "1", "--widths", "3", "--items", "300"]
    arguments += ["--systems", "genrecall bf16", "torch loop f32", "--prompt_tokens", "12"]
    more = ["--clients", "2", "--seconds", "0.2", "--sizes", "1000", "--limits_ms", "500"]
    more += ["--replacements", "3"]
    modules["bench"].main([*arguments, *more, "--output", str(tmp_path / "a")])
    records = [json.loads(x) for x in (tmp_path / "a" / "results.jsonl").read_text().splitlines()]
    assert [r["benchmark"] for r in records] == [
        *("machine", "latency", "latency", "closed_loop", "highest_rate"),
        *("replacement", "catalogue"),
    ]
    replaced = records[-2]
    assert replaced["items"] == 1000 and len(replaced["first_answer_s"]) == 3
    assert 0 < replaced["p50_ms"] <= replaced["replaced_slowest_ms"] <= replaced["slowest_ms"]
    assert records[1]["of_floor"] == pytest.approx(records[1]["floor_ms"] / records[1]["median_ms"])
    assert {p.name for p in (tmp_path / "a").glob("*.png")} == {
        *("latency_tiny.png", "throughput.png", "catalogue.png")
    }
    arguments += ["--sections", "latency", "--output", str(tmp_path / "b")]
    modules["bench"].main([*arguments, "--compare", str(tmp_path / "a" / "results.jsonl")])
    out = capsys.readouterr().out
    assert "now / then" in out and "latency tiny torch loop f32 3" in out


def test_stored_runs_are_read_before_anything_is_measured(modules, tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"benchmark": "machine"}\n{"benchmark":\n')
    with pytest.raises(ValueError, match=r"broken.jsonl:2: bad JSON"):
        modules["bench"].main(["--compare", str(broken), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_unknown_system_is_refused_by_name(modules, capsys):
    with pytest.raises(SystemExit):
        modules["bench"].main(["--systems", "vllm"])
    assert "--systems vllm: expected the beginning of one of genrecall bf16" in (
        capsys.readouterr().err
    )


def test_open_loop_counts_refusals_and_waits(modules):
    """An engine that refuses every second request and takes 20 ms for the others."""
    import time

    class Request:
        def result(self):
            time.sleep(0.02)

    class Engine:
        calls = 0

        def submit(self, prompt, index, beam_width):
            self.calls += 1
            if self.calls % 2:
                raise RuntimeError("queue full")
            return Request()

    found = modules["throughput"].open_loop(Engine(), None, [0], 5, rate=100, seconds=0.5)
    assert found.failed == 25 and len(found.ms) == 25
    assert np.all(found.ms >= 20)


def test_latencies_are_percentiles_of_what_was_answered(modules):
    latencies = modules["throughput"].Latencies
    found = latencies(np.arange(101.0)[::-1], 3, 2.0)
    assert found.row() == {"per_second": 50.5, "p50_ms": 50, "p99_ms": 99, "failed": 3}
    assert found.percentiles(0, 90, 100).tolist() == [0, 90, 100]
    assert np.isnan(latencies(np.zeros(0), 3, 2.0).percentiles(50, 99)).all()


def test_the_slowest_request_of_a_replacement_is_any_that_overlaps_it(modules):
    """Requests of 1 s, one of 3 s during the replacement, one of 9 s long after."""
    replacement = modules["replacement"]
    after = 100 * replacement.POLL_S
    answers = [replacement.Answer(float(t), t + 1.0, 1) for t in range(9)]
    answers += [replacement.Answer(9.0, 12.0, 1), replacement.Answer(12.0, 13.0, 2)]
    answers += [replacement.Answer(13 + after, 22 + after, 2)]
    replaced = replacement.Replacement(catalogue=2, renamed=11.5, first_answer=13.0)
    found = replacement.figures(answers, [replaced])
    assert found["requests"] == 12 and found["p50_ms"] == 1000
    assert found["replaced_requests"] == 2 and found["replaced_over_p50"] == 3
    assert found["slowest_over_p50"] == 9 and found["first_answer_s"] == [1.5]
    replacement.check_answers(answers, [replaced])
    late = replacement.Answer(14.0, 15.0, 1)
    with pytest.raises(AssertionError, match="sent=14.0, .* catalogue=1.* after Replacement"):
        replacement.check_answers([*answers, late], [replaced])


def test_an_answer_comes_from_one_catalogue(modules):
    replacement = modules["replacement"]
    ids = np.array([[2 * replacement.FIRST_ITEM_ID, 2 * replacement.FIRST_ITEM_ID + 7]])
    assert replacement.catalogue_of(ids) == 2
    for other in (ids[0, 0] // 2, -1):  # of another catalogue, and padding
        with pytest.raises(AssertionError, match="an answer from catalogues"):
            replacement.catalogue_of(np.append(ids, other))


def test_what_a_client_raises_ends_the_run(modules):
    def ask(i):
        if i >= 5:
            raise ValueError(f"request {i}")
        asked.append(i)

    asked = []
    with pytest.raises(ValueError, match="request 6"):  # the first client's
        modules["throughput"].keep_asking(ask, 2, lambda: True)
    assert sorted(asked) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("answers", [True, False])
def test_clients_of_a_server_count_what_failed(modules, answers, capsys):
    """Whatever is answered takes a millisecond; every second request fails, or every one."""
    import time

    import grpc

    from genrecall.serving.errors import ServingError

    def predict(request):
        time.sleep(1e-3)
        if request or not answers:
            raise ServingError(grpc.StatusCode.UNAVAILABLE, "busy")

    found = modules["bench_serving"].measure(predict, [0, 1], concurrency=2, seconds=0.2)
    assert found.concurrency == 2 and found.failed > 0 and (found.answered > 0) == answers
    assert capsys.readouterr().err.startswith("UNAVAILABLE: busy")
    if answers:
        assert 1 <= found.p50_ms <= found.p90_ms <= found.p99_ms <= found.max_ms
        assert found.per_second > 0
    else:
        assert np.isnan([found.p50_ms, found.p90_ms, found.p99_ms, found.max_ms]).all()
        assert found.per_second == 0
