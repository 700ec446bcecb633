# Runs one child and takes it down when the process that started us is gone, however that happened.
# Standard input is a pipe whose other end only that process holds: a line names signals for the child, and the end
# of file is the sign.
#   $1 signals that stop the child   $2 directory to remove afterwards (or empty)   $3… the child
signals=$1 scratch=$2
shift 2
exec 3<&0
"$@" 3<&- </dev/null &
child=$!
# One of those that are being stopped may still be writing, and then the first try finds a directory that is not
# empty.
remove() {
    tries=0
    until [ -z "$scratch" ] || rm -rf "$scratch" || [ "$tries" -ge 50 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
}
tell() {
    for signal in $1; do
        kill -s "$signal" "$child"
    done
}
# Waits until the child is gone, its status collected: so many times 20 ms at most.
await() {
    tries=0
    while kill -0 "$child" && [ "$tries" -lt "$1" ]; do
        sleep 0.02
        tries=$((tries + 1))
    done
}
{
    while read -r line <&3; do tell "$line"; done
    trap '' TERM
    tell "$signals"
    await 250
    kill -s KILL "$child"
    await 50
    # Whatever the child itself left running: politely, and, once the directory is gone, with ourselves.
    kill -s TERM 0
    remove
    kill -s KILL 0
} 2>/dev/null &
guard=$!
exec 3<&-
trap '' TERM
wait "$child"
status=$?
# Not in the child's log: the shell's own notes about who was terminated.
exec 2>/dev/null
# Either the guard is at work, and we end with it. Or the child ended by itself: then the guard goes as well, and
# what the child left running.
kill -s TERM 0
wait "$guard"
remove
exit "$status"
