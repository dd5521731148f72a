# bash cuts words at '=' and ':'; this puts them together again, but for the '=' between an option and its value.
_dynslice_words() {
  local i token joined=''
  line=()
  for ((i = 1; i <= COMP_CWORD; ++i)); do
    token=${COMP_WORDS[i]}
    if [[ $token == = && ${#line[@]} -gt 0 && ${line[-1]} == --* ]]; then
      line+=('')
      joined=yes
    elif [[ $token == [=:]* && ${#line[@]} -gt 0 && ${line[-1]} != -* ]]; then
      line[-1]+=$token
      joined=yes
    elif [[ $joined == yes && $token != -* ]]; then
      line[-1]+=$token
      joined=''
    elif [[ $token == --*=* ]]; then
      line+=("${token%%=*}" "${token#*=}")
      before=${token%%=*}=
      joined=''
    else
      line+=("$token")
      joined=''
    fi
    ((i == COMP_CWORD)) || before=''
  done
}

# What is already typed of the word up to its last ':' or '=' is not part of what bash replaces.
_dynslice_trim() {
  local cut='' i
  if [[ -n $before ]]; then
    COMPREPLY=("${COMPREPLY[@]/#/$before}")
  elif [[ $COMP_WORDBREAKS == *:* && $current == *:* ]]; then
    cut=${current%"${current##*:}"}
    for i in "${!COMPREPLY[@]}"; do COMPREPLY[i]=${COMPREPLY[i]#"$cut"}; done
  fi
}

_dynslice_paths() {
  local -a found=()
  case $1 in
    file) mapfile -t found < <(compgen -f -- "$current") ;;
    folder) mapfile -t found < <(compgen -d -- "$current") ;;
    model) mapfile -t found < <(compgen -d -- "$current"; compgen -f -X '!*.gguf' -- "$current") ;;
  esac
  [[ ${#found[@]} -eq 0 ]] || compopt -o filenames 2>/dev/null
  COMPREPLY+=("${found[@]}")
}

_dynslice() {
  local current before='' verb='' pending='' position=1 word words path values i
  local -a line
  _dynslice_words
  current=${line[-1]}
  COMPREPLY=()
  for ((i = 0; i < ${#line[@]} - 1; ++i)); do
    word=${line[i]}
    if [[ -n $pending ]]; then
      pending=''
    elif [[ $word == -* ]]; then
      ! _dynslice_value "$verb:$word" || pending=$word
    elif _dynslice_verbs "$verb" && [[ " $words " == *" $word "* ]]; then
      verb=${verb:+$verb }$word
    else
      ((++position))
    fi
  done
  if [[ -z $pending && $current == -* ]]; then
    _dynslice_options "$verb"
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
  elif [[ -z $pending ]] && _dynslice_verbs "$verb"; then
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
  elif _dynslice_value "$verb:${pending:-$position}"; then
    mapfile -t COMPREPLY < <(compgen -W "$values" -- "$current")
    _dynslice_paths "$path"
  fi
  _dynslice_trim
}

complete -F _dynslice dynslice
