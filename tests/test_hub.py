# SPDX-License-Identifier: Apache-2.0
"""A hub that cannot be reached costs one try, and ends in a sentence or in the cache."""

from types import SimpleNamespace

import datasets
import pytest
from huggingface_hub import constants

from tests import tiny
from trl_soft import hub
from trl_soft.command_line import is_sentence, model_at


FLAGS = (constants, datasets.config)


@pytest.fixture
def tries(monkeypatch):
    """A network without a hub: the addresses that were asked, with the time that an answer had."""
    asked = []

    def head(address, timeout):
        asked.append((address, timeout))
        raise OSError("Name or service not known")

    for module in FLAGS:
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "get_session", lambda: SimpleNamespace(head=head))
    return asked


def test_without_an_answer_the_block_is_offline(tries, caplog):
    with pytest.raises(KeyError), hub.hub_or_cache():
        assert all(module.HF_HUB_OFFLINE for module in FLAGS)
        raise KeyError
    assert not any(module.HF_HUB_OFFLINE for module in FLAGS)
    assert tries == [(constants.ENDPOINT, hub.SECONDS)] and hub.SECONDS <= 5 and "does not answer" in caplog.text


def test_with_an_answer_the_block_is_online(tries, monkeypatch, caplog):
    monkeypatch.setattr(hub, "get_session", lambda: SimpleNamespace(head=lambda address, timeout: None))
    with hub.hub_or_cache():
        assert not any(module.HF_HUB_OFFLINE for module in FLAGS)
    assert not caplog.text


def test_offline_mode_asks_nothing(tries, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with hub.hub_or_cache():
        assert constants.HF_HUB_OFFLINE
    assert not tries


def test_a_folder_asks_nothing_and_a_name_once(tries, tmp_path):
    with model_at(str(tmp_path)):
        assert not constants.HF_HUB_OFFLINE
    assert not tries
    with pytest.raises(OSError, match="neither a folder with a model"), model_at("someone/model"):
        raise OSError("not cached")
    assert len(tries) == 1


def test_out_of_domain_evaluation_says_in_a_sentence_that_the_hub_is_away(tries):
    pytest.importorskip("lm_eval")
    from trl_soft.evaluate.ood import out_of_domain

    with pytest.raises(
        OSError, match=r"The data of `tasks` hellaswag cannot be had from the hub: .*`data_dir`"
    ) as error:
        out_of_domain(tiny.model().eval(), tiny.tokenizer(), ["hellaswag"])
    assert is_sentence(error.value) and len(tries) == 1
