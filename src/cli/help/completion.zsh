# _dynslice_values file|folder|model|none VALUE...
_dynslice_values() {
  local kind=$1 result=1
  shift
  local -a expl offered=("$@")
  (( $# )) && _wanted values expl value compadd -a offered && result=0
  case $kind in
    file) _files && result=0 ;;
    folder) _files -/ && result=0 ;;
    model) _files -g '*.gguf(-.)' && result=0 ;;
  esac
  return result
}

# Autoloaded by its name, or sourced.
if [[ $funcstack[1] == _dynslice ]]; then
  _dynslice "$@"
else
  compdef _dynslice dynslice
fi
