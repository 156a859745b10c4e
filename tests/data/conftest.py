"""What the tests of the data room share."""

import pytest
from tokenizers import Tokenizer

from bedplate.data.tokenizer import train_tokenizer

from .writers import SENTENCES


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(SENTENCES * 4, 320)
