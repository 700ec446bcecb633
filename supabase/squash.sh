#!/usr/bin/env bash
# Writes the three migrations from schemas/. Only as long as none of them has been applied to a project that stays: from
# then on a change is a migration of its own, and this script is deleted.
set -euo pipefail
cd "$(dirname "$0")"

# migration NAME SCHEMA…: the comment at the head of the first file, then all of them as one transaction.
migration() {
    local name=$1 first=$2
    shift
    {
        sed '/^$/,$d' "$first"
        printf "\nbegin;\nset local lock_timeout = '5s';\n\n"
        sed '1,/^$/d' "$first"
        shift
        for file; do
            printf '\n'
            cat "$file"
        done
        printf '\ncommit;\n'
    } > "migrations/$name.sql"
}

migration 20261122000000_application_baseline schemas/00_*.sql
migration 20261122000001_extend_application_tables schemas/01_*.sql
migration 20261122000002_jobs schemas/[1-9]*.sql
