# SPDX-License-Identifier: LGPL-2.1-or-later
# fish: 'chainctl complete' says what could come next, with the names of live disks and jobs.
function __chainctl_complete
    set -l words (commandline -opc) (commandline -ct)
    set -l current $words[-1]
    set -l prefix (string match -r -- '^--[^=]*=' $current)
    for word in (chainctl complete -- $words[2..-1] 2>/dev/null)
        if test "$word" = FILES
            __fish_complete_path (string replace -- "$prefix" '' $current)
        else
            echo "$prefix$word" # without quotes nothing, where there is no prefix
        end
    end
end
complete -c chainctl -f -a '(__chainctl_complete)'
