# fish completion for dynslice: printed by `dynslice completion fish`.

# Whether the command line, up to the word that is typed, has come to this verb ('' for none).
function __dynslice_at
    set -l verb ''
    set -l is_value no
    for word in (commandline -opc)[2..-1]
        if test $is_value = yes
            set is_value no
        else if contains -- $word OPTIONS_WITH_A_VALUE
            set is_value yes
        else if contains -- (string trim -- "$verb $word") VERBS
            set verb (string trim -- "$verb $word")
        end
    end
    test "$verb" = "$argv[1]"
end

complete -c dynslice -e
complete -c dynslice -f
