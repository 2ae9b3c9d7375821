# Sourced by the install scripts, which say in `venv` which virtual environment they fill.
# uv installs where there is one that reaches an index, for a tenth of pip's work; pip does otherwise, and what goes
# beside a torch.
checkout=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
uv=${UV:-$(command -v uv || true)}
for_uv=() for_pip=()

# make_venv PYTHON
make_venv() { "$1" -m venv "$venv"; }

# make_torch_venv PYTHON: with torch, and what else the checkout's own environment has, where that is of this Python:
# most of it is wanted here, too, and is installed only once.
make_torch_venv() {
  local of own
  uv=  # it sees nothing outside of the venv, and would bring a torch of its own
  of='import sysconfig; print(sysconfig.get_path("purelib"))'
  own=$([ -e "$checkout/.venv/.ready" ] && "$checkout/.venv/bin/python" -c "$of" || true)
  if [ -n "$own" ] && [ "$(basename "$(dirname "$own")")" = "$("$1" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')" ]; then
    make_venv "$1"
    echo "import site; site.addsitedir('$own')" > "$("$venv/bin/python" -c "$of")/of_the_checkout.pth"
  else
    "$1" "$checkout/scripts/setup_env.py" --venv "$venv" --torch-only ${TORCH:+--torch "$TORCH"}
  fi
}

# get PACKAGE ...
get() {
  if [ -n "$uv" ] && "$uv" pip install --quiet --python "$venv/bin/python" "${for_uv[@]}" "$@"; then return; fi
  "$venv/bin/python" -m pip --quiet --disable-pip-version-check install "${for_pip[@]}" "$@"
}
