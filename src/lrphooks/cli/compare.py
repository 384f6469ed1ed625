"""``lrphooks compare``: one picture, one class, several composites."""

from __future__ import annotations

import argparse

from lrphooks.cli import arguments, inputs, reporting
from lrphooks.cli.command import SUCCESS, CommandError
from lrphooks.cli.drawing import draw_methods
from lrphooks.cli.explaining import Explainer
from lrphooks.cli.inputs import COMPARISON
from lrphooks.cli.output import emit
from lrphooks.cli.results import make_folder, save
from lrphooks.cli.subject import subject_of


def run(options: argparse.Namespace) -> int:
    """Draw one picture by several composites."""
    subject = subject_of(options)
    output = inputs.one_output(subject.path, options.output, COMPARISON, packaged=not options.image)
    methods = arguments.composites_of(options)
    found = []
    for each in methods:
        explainer = Explainer(subject.model, each.make(subject.model), str(subject.target))
        explanation = explainer.explain([subject.x])[0]
        if isinstance(explanation, CommandError):
            raise CommandError(f"{each.text}: {explanation}")
        found.append(explanation)
    if inputs.output_file(options.output) is None:
        make_folder(output.parent)
    save(draw_methods(subject.model, subject.x, found, [each.text for each in methods]), output)
    for line in subject.lines(options):
        emit(line)
    rows = [("composite", "Σ R", "absorbed")]
    for each, explanation in zip(methods, found, strict=True):
        (explained,) = explanation.explained
        absorbed = "undefined" if explained.absorbed is None else f"{explained.absorbed:.5g}"
        rows.append((each.text, f"{explained.relevance:.5g}", absorbed))
    emit(reporting.field("f(x)", f"{found[0].explained[0].output:.6g}"))
    emit()
    for line in reporting.table(rows):
        emit(line)
    emit()
    emit(reporting.field("written", str(output)))
    return SUCCESS
