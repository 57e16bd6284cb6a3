"""Choosing the device, the environment report, and the commands."""

import subprocess
import sys

import pytest
import torch

from densenet_tutorial.__main__ import main
from densenet_tutorial.utils import environment


def test_the_variable_chooses_the_device(monkeypatch):
    monkeypatch.setenv("DENSENET_TUTORIAL_DEVICE", "cpu")
    assert environment.device() == torch.device("cpu")
    monkeypatch.delenv("DENSENET_TUTORIAL_DEVICE")
    expected = (
        "cuda"
        if torch.cuda.is_available()
        else "mps"
        if torch.backends.mps.is_available()
        else "cpu"
    )
    assert environment.device().type == expected


def test_an_unknown_device_is_refused(monkeypatch):
    monkeypatch.setenv("DENSENET_TUTORIAL_DEVICE", "gpu")
    with pytest.raises(ValueError, match="DENSENET_TUTORIAL_DEVICE must be one of 'auto'.*'gpu'"):
        environment.device()


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setenv("DENSENET_TUTORIAL_DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="'cuda', but PyTorch finds no such device"):
        environment.device()


def test_the_env_command_prints_what_a_bug_report_needs():
    command = [sys.executable, "-m", "densenet_tutorial", "env"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for fact in (
        f"torch: {torch.__version__.split('+')[0]}",
        "python: ",
        "processor: ",
        "device: ",
    ):
        assert fact in printed


def test_the_env_command_also_reports_a_device_that_is_not_there(monkeypatch, capsys):
    monkeypatch.setenv("DENSENET_TUTORIAL_DEVICE", "tpu")
    main(["env"])
    printed = capsys.readouterr().out
    assert "device: none: DENSENET_TUTORIAL_DEVICE must be one of 'auto'" in printed
    assert "torch: " in printed


def test_an_empty_variable_is_none(monkeypatch):
    monkeypatch.setenv("DENSENET_TUTORIAL_DEVICE", "")
    assert environment.device() == environment.device("auto")


def test_the_summary_command_counts_parameters(capsys):
    main(["summary", "densenet_bc_100_12", "--size", "28", "--in-channels", "1"])
    assert "768,730" in capsys.readouterr().out


def test_commands_refuse_bad_input_in_words(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["summary", "densenet120"])
    assert caught.value.code == 2
    assert "MODEL must be one of" in capsys.readouterr().err
