#!/usr/bin/env bash
# torch.distributed's isend and irecv over gloo never become complete by themselves: is_completed() is False until wait().
#
# Guess, written down first: is_completed() becomes True when the message has arrived, as it does for an all_reduce that
#   was started with async_op=True, so a loop can poll several messages and take the one that came first.
# Seen, torch 2.13.0: two seconds after both sides have started, the receiver's tensor holds the numbers and is_completed()
#   of both works is False. wait() returns at once and makes it True. An asynchronous all_reduce on the same group is True
#   without wait().
# Why it matters: a pipeline stage that polls its messages, so that it can also look for a dead neighbour, polls for ever,
#   although all data is there. Waiting on a thread of its own is what is left.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat >"$work/message.py" <<'EOF'
import sys
import time

import torch
import torch.distributed as dist

rank, file = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
x = torch.full((4,), 7.0) if rank == 0 else torch.zeros(4)
work = dist.isend(x, 1) if rank == 0 else dist.irecv(x, 0)
time.sleep(2)
before = work.is_completed()
assert x.tolist() == [7.0] * 4, "the message is there"
work.wait()
after = work.is_completed()
total = dist.all_reduce(x, async_op=True)
time.sleep(2)
print("isend" if rank == 0 else "irecv", before, "after wait", after, "all_reduce", total.is_completed())
assert (before, after, total.is_completed()) == (False, True, True)
dist.barrier()
dist.destroy_process_group()
EOF
"$work/venv/bin/python" "$work/message.py" 1 "$work/store" &
"$work/venv/bin/python" "$work/message.py" 0 "$work/store"
wait $!
echo "still so"
