"""Compiles the native library into the wheel, also for editable installs.

Without a compiler the install goes on and the operators use their portable path.
"""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SCRIPT = "src/kunlun/ops/native/build.py"


class NativeLibrary(BuildHookInterface):  # type: ignore[type-arg]
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        spec = importlib.util.spec_from_file_location("native_build", Path(self.root) / SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        native = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(native)
        try:
            if native.stale():
                native.build()
        except native.BuildError as error:
            native.LIBRARY.unlink(missing_ok=True)  # what other sources made is of no use
            self.app.display_warning(f"kunlun goes without its native library: {error}")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
