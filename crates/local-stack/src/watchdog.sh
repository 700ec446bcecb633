# Runs one child and takes it down when the process that started us is gone, however that happened.
# Standard input is a pipe whose other end only that process holds: each line is a signal for the child, and the
# end of file is the sign.
#   $1 signal that stops the child   $2 directory to remove afterwards (or empty)   $3… the child
signal=$1 scratch=$2
shift 2
exec 3<&0
"$@" 3<&- </dev/null &
child=$!
{
    while read -r line <&3; do kill -s "$line" "$child"; done
    trap '' TERM
    kill -s "$signal" "$child"
    tries=0
    while kill -0 "$child" && [ "$tries" -lt 50 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
    kill -s KILL "$child"
    [ -n "$scratch" ] && rm -rf "$scratch"
    # Whatever the child itself left running, and us.
    kill -s KILL 0
} 2>/dev/null &
guard=$!
exec 3<&-
wait "$child"
status=$?
# Either the child ended by itself: tell the guard and what the child left running. Or the guard is at work, and
# this ends with it.
trap '' TERM
kill -s TERM 0
wait "$guard"
[ -n "$scratch" ] && rm -rf "$scratch"
exit "$status"
