from tests.checkpoints.internvl.published_internvl import write_published


def test_a_published_model_is_converted(run, tmp_path):
    write_published(tmp_path / "published", "InternLM2ForCausalLM", "300M")
    done = run("--model", tmp_path / "published", "--output", tmp_path / "converted")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"written: {tmp_path / 'converted'}\n", "")
    assert (tmp_path / "converted" / "model.safetensors").is_file()


def test_bad_input_is_one_line_and_exit_code_2(run, tmp_path):
    done = run("--model", tmp_path / "nowhere", "--output", tmp_path / "converted")
    assert (done.returncode, done.stderr) == (2, f"error: {tmp_path / 'nowhere'}: no such folder\n")
    assert list(tmp_path.iterdir()) == []
