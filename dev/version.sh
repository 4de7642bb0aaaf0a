#!/bin/sh
# version.sh: prints version.h: version, commit (with + where files were changed) and compiler. Works without git.
commit=$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
git diff --quiet HEAD 2>/dev/null || [ "$commit" = unknown ] || commit="$commit+"
printf '#define GPT_VERSION "0.1"\n#define GPT_COMMIT "%s"\n#define GPT_COMPILER "%s"\n' "$commit" "$("$1" --version 2>/dev/null | head -1 | tr -d '"\\')"
