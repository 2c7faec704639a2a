#!/usr/bin/env bash
# The runtime on the CPU of a Jetson Orin, emulated: tests/arm.sh BUNDLE [FOLDER]. Tells what is equal to this machine;
# its times mean nothing. Needs Debian or Ubuntu, pip, 155 MB of downloads, and no root; FOLDER keeps them.
#
# Of the environment: ORT (onnxruntime, or onnxruntime==1.23.2, the last that JetPack 6 has), CPU (cortex-a78ae),
# STEPS (3), DEBIAN_MIRROR, QEMU_SUITE (sid: only qemu 10 and newer show programs an ARM's /proc/cpuinfo), PYTHON.
# With a cross compiler (apt-get install g++-aarch64-linux-gnu) the native host is built and drawn with as well.
set -euo pipefail
bundle=$(realpath "$1")
repository=$(realpath "$(dirname "$0")/..")
mkdir -p "${2:-build/arm}"
work=$(realpath "${2:-build/arm}")
python=${PYTHON:-python3}
cpu=${CPU:-cortex-a78ae}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

download() { # architecture, suite and packages, with lists of its own; to $work/$architecture-$suite/archives
  local home=$work/$1-$2
  mkdir -p "$home"/{lists/partial,archives/partial,parts}
  touch "$home/status"
  echo "deb [signed-by=$keyring] $mirror $2 main" >"$home/sources.list"
  cat >"$home/apt.conf" <<EOF
APT::Architecture "$1"; APT::Architectures { "$1"; }; APT::Sandbox::User "root";
Dir::State "$home"; Dir::State::status "$home/status"; Dir::State::lists "$home/lists";
Dir::Cache "$home"; Dir::Cache::archives "$home/archives";
Dir::Etc::sourcelist "$home/sources.list"; Dir::Etc::sourceparts "$home/parts";
EOF
  APT_CONFIG=$home/apt.conf apt-get -qq update
  (cd "$home/archives" && APT_CONFIG=$home/apt.conf apt-get -qq download "${@:3}")
}

if [ ! -e "$work/ready" ]; then
  download amd64 "${QEMU_SUITE:-sid}" qemu-user
  dpkg-deb --fsys-tarfile "$work"/amd64-*/archives/qemu-user_*.deb | tar -x -C "$work" ./usr/bin/qemu-aarch64
  download arm64 bookworm libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libbz2-1.0 liblzma5 libffi8 libssl3 libuuid1 \
    python3.11-minimal libpython3.11-minimal libpython3.11-stdlib
  for deb in "$work"/arm64-bookworm/archives/*.deb; do dpkg-deb -x "$deb" "$work/root"; done
  platforms=(--platform manylinux2014_aarch64)
  for tag in 2_28 2_27 2_26 2_17; do platforms+=(--platform "manylinux_${tag}_aarch64"); done
  "$python" -m pip install -q --no-deps --target "$work/site" "${platforms[@]}" --only-binary=:all: \
    --python-version 311 --implementation cp --abi cp311 --abi abi3 --abi none \
    "${ORT:-onnxruntime}" numpy msgspec tokenizers pillow click rich flatbuffers packaging protobuf markdown-it-py mdurl pygments
  touch "$work/ready"
fi

emulated() { "$work/usr/bin/qemu-aarch64" -cpu "$cpu" -L "$work/root" -E OMP_NUM_THREADS=1 "$@"; }
here() { OMP_NUM_THREADS=1 "$python" "$repository/cli.py" "$@"; }
there() {
  emulated -E "PYTHONPATH=$work/site:$repository" -E PYTHONNOUSERSITE=1 -E PYTHONDONTWRITEBYTECODE=1 \
    "$work/root/usr/bin/python3.11" "$repository/cli.py" "$@"
}
compare() { # two pictures, and the two files of their tokens where there are some
  "$python" - "$@" <<'EOF'
import json, sys
import numpy as np
from PIL import Image
one, other = (np.asarray(Image.open(name)).astype(int) for name in sys.argv[1:3])
worst = int(np.abs(one - other).max())
tokens = [json.load(open(name))["pictures"][0]["rep_ids"] for name in sys.argv[3:]]
print(f"{sys.argv[2]}: worst difference {worst} of 255", *(["tokens equal"] if tokens and tokens[0] == tokens[1] else []))
sys.exit(worst > 1 or bool(tokens) and tokens[0] != tokens[1])
EOF
}

near() { # two pictures from the same tokens, by the least PSNR that the gate of `calibrate` asks for
  "$python" - "$@" <<'EOF'
import sys
import numpy as np
from PIL import Image
one, other = (np.asarray(Image.open(name)).astype(float) for name in sys.argv[1:])
found = 20 * np.log10(255) - 10 * np.log10(max(((one - other) ** 2).mean(), 1e-9))
print(f"{sys.argv[2]}: {found:.1f} dB")
sys.exit(bool(found < 25))
EOF
}

rm -rf "$work/bundle"
cp -r "$bundle" "$work/bundle"
rm -rf "$work/bundle/engines"
cd "$work"
there doctor
there inspect bundle --verify >inspect.txt
there build-engine bundle --backend ort --precision fp32
draw=(generate bundle "a red car" --seed 7 --threads 1 --steps "${STEPS:-3}" --json)
here "${draw[@]}" --engine none -o here.png >here.json
for engine in none auto; do
  there "${draw[@]}" --engine $engine -o "there-$engine.png" >"there-$engine.json"
  compare here.png "there-$engine.png" here.json "there-$engine.json"
done
test "$(there understand bundle here.png --threads 1)" = "$(here understand bundle here.png --threads 1)"
echo "captions equal"
for precision in fp16 int8; do
  if [ -e "bundle/graphs/denoiser.$precision.classic.onnx" ]; then
    draw=(generate bundle "a red car" --seed 7 --threads 1 --steps "${STEPS:-3}" --engine none --rep-tokens here.png)
    there "${draw[@]}" --precision $precision -o "there-$precision.png"
    near here.png "there-$precision.png"
  else
    echo "the bundle has no $precision graphs: not tried"
  fi
done

if command -v aarch64-linux-gnu-g++ >/dev/null; then
  cmake -S "$repository/runtime/native" -B native -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ >/dev/null
  cmake --build native >/dev/null
  here generate bundle "a red car" --seed 7 --threads 1 --engine none -o full.png
  emulated -E "LD_LIBRARY_PATH=$work/native" -E "RF_ONNXRUNTIME=$(echo "$work"/site/onnxruntime/capi/libonnxruntime.so*)" \
    native/rf_draw bundle "a red car" native.png 7
  compare full.png native.png
else
  echo "the native host was not tried; install a cross compiler: apt-get install g++-aarch64-linux-gnu"
fi
