"""bedplate: pre-train, adapt and use Transformer models.

Every verb of the command line is one function here, imported on first use so that `import bedplate` stays light:

    import bedplate
    bedplate.quickstart()
    model = bedplate.load("quickstart/model")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bedplate.errors import InputError

__version__ = "0.1.0"

_VERBS = (
    "ask",
    "caption",
    "doctor",
    "draw",
    "evaluate",
    "finetune",
    "generate",
    "info",
    "launch",
    "load",
    "plan",
    "predict",
    "prepare",
    "pretrain",
    "quickstart",
    "search",
    "tokenizer",
    "transfer",
)

__all__ = ["InputError", "__version__", *_VERBS]

if TYPE_CHECKING:
    from bedplate.api.ask import ask as ask
    from bedplate.api.caption import caption as caption
    from bedplate.api.doctor import doctor as doctor
    from bedplate.api.draw import draw as draw
    from bedplate.api.evaluate import evaluate as evaluate
    from bedplate.api.finetune import finetune as finetune
    from bedplate.api.generate import generate as generate
    from bedplate.api.info import info as info
    from bedplate.api.launch import launch as launch
    from bedplate.api.load import load as load
    from bedplate.api.plan import plan as plan
    from bedplate.api.predict import predict as predict
    from bedplate.api.prepare import prepare as prepare
    from bedplate.api.pretrain import pretrain as pretrain
    from bedplate.api.quickstart import quickstart as quickstart
    from bedplate.api.search import search as search
    from bedplate.api.tokenizer import tokenizer as tokenizer
    from bedplate.api.transfer import transfer as transfer


def __getattr__(name: str) -> Any:
    """Import the verb `name` from the module of the same name in `bedplate.api` (PEP 562)."""
    if name not in _VERBS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # These modules live in `bedplate.api` and no room has a verb's name: an import never replaces a verb by a module.
    verb = getattr(import_module(f"bedplate.api.{name}"), name)
    globals()[name] = verb
    return verb


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
