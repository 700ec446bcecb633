#!/usr/bin/env bash
# Calls one manual route and fails when the route does.
#
#   JOBS_BASE_URL=https://… CRON_SECRET=… .github/scripts/trigger.sh ROUTE
#
# ROUTE: check-thresholds, monthly-sync or sync-integrations. Its parameters come from the environment,
# empty meaning none: FORCE and DRY_RUN (true), MONTH (2026-11), DAYS (30), USER_ID (a uuid).
#
# The secret goes to curl through its standard input, so that it is in no URL and no process list.
# Tried again is only a connection that was never made, and a 503: the database could not be reached, and
# what was planned all the same is found by its keys. After a time-out the run is going on: look there.
set -euo pipefail

attempts=${TRIGGER_ATTEMPTS:-4}
pause=${TRIGGER_PAUSE_SECONDS:-20}
patience=${TRIGGER_MAX_SECONDS:-330} # a function ends after 300
here=$(cd "$(dirname "$0")" && pwd)

refuse() {
  printf '::error::%s\n' "$1" >&2
  exit 2
}

route=${1:-}
case "$route" in
  check-thresholds | monthly-sync | sync-integrations) ;;
  *) refuse "Route inconnue : check-thresholds, monthly-sync ou sync-integrations." ;;
esac

base=${JOBS_BASE_URL:-}
base=${base%/}
case "$base" in
  *[!A-Za-z0-9.:/_-]*) refuse "La variable JOBS_BASE_URL n'est pas une adresse." ;;
  https://?* | http://127.0.0.1:* | http://localhost:*) ;;
  *) refuse "La variable JOBS_BASE_URL doit être une adresse https." ;;
esac

secret=${CRON_SECRET:-}
case "$secret" in
  '' | *[[:space:]]* | *[[:cntrl:]]*) refuse "Le secret CRON_SECRET est absent, ou contient une espace ou un saut de ligne." ;;
esac

query=''
add() {
  [ -n "$2" ] || return 0
  case "$2" in
    *[!A-Za-z0-9-]*) refuse "Le paramètre $1 contient un caractère interdit." ;;
  esac
  query="$query${query:+&}$1=$2"
}
[ "${FORCE:-}" = true ] && add force true
[ "${DRY_RUN:-}" = true ] && add dry_run true
add month "${MONTH:-}"
add days "${DAYS:-}"
add user_id "${USER_ID:-}"
url="$base/api/manual/$route${query:+?$query}"

body=$(mktemp)
trap 'rm -f "$body"' EXIT

# Sets `status` (000 without an answer) and `code`, curl's own.
call() {
  code=0
  status=$(printf 'Authorization: Bearer %s\n' "$secret" |
    curl --silent --show-error --header @- --request POST --data '' \
      --connect-timeout 20 --max-time "$patience" --output "$body" --write-out '%{http_code}' "$url") || code=$?
}

for ((attempt = 1; ; attempt++)); do
  : >"$body"
  call
  # 5, 6, 7: proxy or host not found, connection refused. 35: no TLS, so no request either.
  case "$code/$status" in
    5/* | 6/* | 7/* | 35/* | 0/503) ;;
    *) break ;;
  esac
  [ "$attempt" -lt "$attempts" ] || break
  printf 'Essai %d/%d sans effet (curl %s, HTTP %s), nouvel essai dans %s s.\n' \
    "$attempt" "$attempts" "$code" "$status" "$pause"
  sleep "$pause"
done

verdict=0
answer=$(node "$here/judge-answer.mjs" "$body") || verdict=$?

failure=''
if [ "$code" -eq 28 ]; then
  failure="pas de réponse en $patience s : le travail continue peut-être, voir sync_logs avant de relancer"
elif [ "$code" -ne 0 ]; then
  failure="pas de réponse (curl $code)"
elif [[ "$status" != 2?? ]]; then
  failure="HTTP $status"
elif [ "$verdict" -eq 3 ]; then
  failure="la réponse compte des erreurs"
elif [ "$verdict" -ne 0 ]; then
  failure="la réponse n'est pas du JSON"
fi

printf '%s : HTTP %s\n%s\n' "$route" "$status" "$answer"
{
  printf '### %s : %s\n\n' "$route" "${failure:-terminé}"
  # Indented, not fenced: nothing in the answer can end the block.
  printf '%s\n' "$answer" | sed 's/^/    /'
  printf '\n'
} >>"${GITHUB_STEP_SUMMARY:-/dev/null}"

if [ -n "$failure" ]; then
  printf '::error::%s : %s\n' "$route" "$failure"
  exit 1
fi
