"""Controls the pydantic plugins of other packages in the processes of this project."""

import os


def leave_out_logfire() -> None:
    """Keeps pydantic from importing LogFire by its plugin, which costs 25 MB and 0.3 s at every start.

    Call it before pydantic builds a model. The environment's own plugin settings stay.
    """
    if "LOGFIRE_PYDANTIC_PLUGIN_RECORD" not in os.environ:
        os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "logfire-plugin")
