# Runs one child and takes it down when the process that started us is gone, however that happened.
# Standard input is a pipe whose other end only that process holds: its end of file is the sign.
#   $1 signal that stops the child   $2 directory to remove afterwards (or empty)   $3… the child
signal=$1 scratch=$2
shift 2
exec 3<&0
"$@" 3<&- </dev/null &
child=$!
{
    while read -r line <&3; do :; done
    kill -s "$signal" "$child"
    tries=0
    while kill -0 "$child" && [ "$tries" -lt 50 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
    kill -s KILL "$child"
} 2>/dev/null &
exec 3<&-
wait "$child"
status=$?
# Whatever the child itself left running, and our own background job.
trap '' TERM
kill -s TERM 0
[ -n "$scratch" ] && rm -rf "$scratch"
exit "$status"
