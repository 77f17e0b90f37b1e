"""What schemathesis finds when it holds `mlpmixer serve` to its own OpenAPI: python benchmarks/contract.py

Needs the extra dev, or --schemathesis PROGRAM of another environment. A tiny network with random weights, 127.0.0.1
only. All checks and phases, with a token and without one; strings that stand for image files are images of every format
that the service reads, so that a request is valid when the schema says so. Exit code 1 when something is found.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fuzz_http import export
from fuzz_uploads import FILES
from served import HOST, mlpmixer_serve, serving

from mlpmixer.serve.headers import NotServed, read_header

HOOKS = """
import base64, pathlib
import schemathesis
from hypothesis import strategies as st

FILES = st.sampled_from([path.read_bytes() for path in sorted(pathlib.Path("files").iterdir())])
ENCODINGS = st.sampled_from([base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes])
schemathesis.openapi.format("binary", FILES)
schemathesis.openapi.format("byte", st.builds(lambda data, encode: encode(data).decode(), FILES, ENCODINGS))
schemathesis.openapi.media_type("image/*", FILES)
schemathesis.openapi.media_type("application/octet-stream", FILES)
"""


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--schemathesis", default=str(Path(sys.executable).with_name("schemathesis")), metavar="PROGRAM"
    )
    parser.add_argument("--examples", type=int, default=100, help="requests for each operation and phase, at most")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    if not shutil.which(args.schemathesis):
        parser.error(
            f'{args.schemathesis} is missing: pip install "mlpmixer[dev]", or name another with --schemathesis'
        )
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "hooks.py").write_text(HOOKS)
        (folder / "token").write_text("secret")
        (folder / "files").mkdir()
        for i, (_, data) in enumerate(FILES):
            try:
                read_header(data)
            except NotServed:
                continue
            (folder / "files" / str(i)).write_bytes(data)
        network = export(folder)
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment |= {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": scratch}
        for options, headers in (
            ([], []),
            (["--token-file", str(folder / "token")], ["-H", "Authorization: Bearer secret"]),
        ):
            with serving(mlpmixer_serve(network, *options)) as server:
                command = [args.schemathesis, "run", f"http://{HOST}:{server.port}/openapi.json", "--checks", "all"]
                command += [
                    "--max-examples",
                    str(args.examples),
                    "--seed",
                    str(args.seed),
                    "--continue-on-failure",
                    *headers,
                ]
                failed |= subprocess.run(command, cwd=folder, env=environment).returncode != 0
                if "Traceback" in (log := server.log.read_text(errors="replace")):
                    print(log)
                    failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
