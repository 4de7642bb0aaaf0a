# joined.sh: owns what tests/test_join.sh and tests/launchers.sh share: a text, a model that is trained in a second, and what they ask of a run's folder.
# Sourced where the text shall be written: my.txt.
awk -v s=7 'BEGIN { n = split("the old bear found a red key and sang slept ran home with his friend", w, " ")
  for (i = 0; i < 3500; i++) { s = s * 16807 % 2147483647; printf "%s%s", w[s % n + 1], i % 9 == 8 ? ".\n" : " " } }' > my.txt
tiny="--tokenizer byte --layers 2 --channels 32 --heads 2 --context 16 --val-every 0 --sample-every 0 --tokens-per-step 384 --dropout 0.1 --warmup 2 --schedule constant --batch 4"
newest() { ls -d "$1"/step_* 2> /dev/null | tail -1; }
same_model() { cmp "$(newest "$1")/model.safetensors" "$(newest "$2")/model.safetensors" && cmp "$(newest "$1")/trainer.safetensors" "$(newest "$2")/trainer.safetensors"; }
wait_for_saves() { for _ in $(seq 600); do [ "$(grep -c '"kind": "save"' "$1/log.jsonl" 2> /dev/null)" -ge "$2" ] 2> /dev/null && return 0; sleep 0.02; done; return 1; }
