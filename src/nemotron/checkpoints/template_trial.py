"""A chat template tried out: ``python -m nemotron.checkpoints.template_trial`` reads one, and prints what it did.

In a process of its own, because nothing else ends one that computes ``9 ** (9 ** 9)``: Jinja's sandbox keeps it from
our files and bounds one `range`, but neither loops in loops nor numbers nor texts.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from nemotron.disk.documents import parse_json

SECONDS = 2
"""Of the processor. Templates take milliseconds; starting takes a tenth of a second."""
MEMORY_BYTES = 512 << 20
MOST_LETTERS = 1 << 20
"""What may come out of a conversation of four words."""
ENDLESS = f"does not come to an end: a conversation of four words takes it more than {SECONDS} s, or more than 512 MB"


def tried(template: str, conversations: Iterable[Iterable[Iterable[str]]], more: dict[str, Any]) -> dict[str, Any]:
    """``fault``: why nobody can write with it, a clause; ``texts``: what it made of each conversation, null of one that
    it does not take; ``refused``: what it said then.

    ``conversations``: turns, each a role and what it says.
    """
    from jinja2 import TemplateSyntaxError

    environment = _environment()
    try:
        made = environment.from_string(template)
    except TemplateSyntaxError as error:
        reason = (error.message or "syntax error").partition("\n")[0].rstrip(".").replace("'", "`")
        return {"fault": f"does not parse: line {error.lineno}: {reason[0].lower()}{reason[1:]}"}
    except RecursionError:
        return {"fault": "does not parse: too much is inside each other"}
    except MemoryError:
        return {"fault": ENDLESS}
    except Exception as error:  # noqa: BLE001  what can be computed beforehand is, and may fail in any way
        return {"fault": f"does not parse: {type(error).__name__}: {str(error)[:200]}"}
    texts: list[str | None] = []
    refused: list[str | None] = []
    for given in conversations:
        messages = [{"role": role, "content": content} for role, content in given]
        text = ""
        try:
            for part in made.generate({**more, "messages": messages, "add_generation_prompt": False}):
                text += part
                if len(text) > MOST_LETTERS:
                    return {"fault": f"writes more than {MOST_LETTERS:,} letters for a conversation of four words"}
        except MemoryError:
            return {"fault": ENDLESS}
        except Exception as error:  # noqa: BLE001  a template is a program, and may fail in any way
            texts.append(None)
            refused.append((str(error) or type(error).__name__).partition("\n")[0][:200])
        else:
            texts.append(text)
            refused.append(None)
    return {"fault": None, "texts": texts, "refused": refused}


def _environment() -> Any:
    """Jinja as transformers sets it up."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}``, which marks what the assistant says; here it marks nothing."""

        tags = {"generation"}  # noqa: RUF012  jinja2 declares it as a plain set

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.globals.update(raise_exception=refuse, strftime_now=lambda form: datetime.now().strftime(form))
    made.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    return made


def main() -> None:
    """Read what to try, within limits, and say what came of it."""
    for kind, most in ((resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    asked = parse_json(sys.stdin.buffer.read())
    print(json.dumps(tried(asked["template"], asked["conversations"], asked["more"])))


if __name__ == "__main__":
    main()
