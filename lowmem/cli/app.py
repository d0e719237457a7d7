"""All verbs, and the one place where a `LowmemError` becomes a message and an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import lowmem
from lowmem.cli import (
    batch,
    calibrate,
    chat,
    demo,
    diagnose,
    doctor,
    evaluate,
    export,
    generate,
    init,
    merge,
    plan,
    quantize,
    render,
    report,
    serve,
    train,
)
from lowmem.errors import LowmemError

INTERRUPTED = 130
BROKEN_PIPE = 141  # what a shell reports for a program that SIGPIPE ended
EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 bad config or usage, 3 does not fit the budget, 4 out of memory, "
    "5 quality gate failed, 130 interrupted (a run has saved a checkpoint)."
)


class _Verbs(TyperGroup):
    """Errors that a user can cause or mend end as one message; everything else keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except LowmemError as error:
            render.error(str(error))
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as interrupt:
            raise typer.Exit(INTERRUPTED) from interrupt
        except BrokenPipeError as error:
            # Python flushes stdout once more when it exits, and would complain about the pipe again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise typer.Exit(BROKEN_PIPE) from error
        return result


app = typer.Typer(
    cls=_Verbs,
    name="lowmem",
    help="Finetune, evaluate and use language models inside a memory budget.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        render.result(f"lowmem {lowmem.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


app.command("plan")(plan.plan)
app.command("train", cls=train.Command)(train.train)
app.command("eval")(evaluate.evaluate)
app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("serve")(serve.serve)
app.command("quantize")(quantize.quantize)
app.command("merge")(merge.merge)
app.command("calibrate")(calibrate.calibrate)
app.command("export")(export.export)
app.command("report")(report.report)
app.command("init")(init.init)
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)
app.add_typer(batch.app)
app.add_typer(diagnose.app)
