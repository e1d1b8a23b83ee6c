"""Names of what is run: they end in a hash of what they name, so that unequal things never collide."""

import re
from typing import Any

from crnet.runtime.files import canonical, sha256_text

Spec = dict[str, Any]


def name_of(slug: str, spec: Spec) -> str:
    return f"{for_paths(slug)}-{sha256_text(canonical(spec))[:8]}"


def for_paths(name: str) -> str:
    """A name as it stands in paths: ``package.module:function`` has characters that do not belong there."""
    return re.sub(r"[^\w-]+", "-", name, flags=re.ASCII)


def slug(training: Spec) -> str:
    """What a reader wants to see of a training in the name of whatever belongs to it."""
    return f"{training['method']}-{training['dataset']['name']}-f{training['fold']}-s{training['seed']}"
