"""What kernels/behaviors.h says, step by step and slowly: the oracle of the tests."""

EXPOSURE, CLICK, CONVERSION = 0, 1, 2
AD, CONTENT = 0, 1
DAY = 24 * 3600
NOW = 1_000_000_000


def clean_oracle(
    events,
    request_time,
    max_events=64,
    block=1,
    actions=0b110,
    domains=0b11,
    attribution_window_s=7 * DAY,
    repeat_window_s=DAY,
):
    """events: list of (item, action, domain, time). Quadratic, and says nothing twice."""

    def valid(item, action, domain, time):
        known = 0 <= action < 3 and 0 <= domain < 2
        on = known and actions >> action & 1 and domains >> domain & 1
        return item >= 0 and 0 < time <= request_time and on

    line = sorted((e for e in events if valid(*e)), key=lambda e: e[3])  # sorted() is stable
    line = [list(e) + [True] for e in line]  # ... and whether it is still there
    for i, (item, action, _, time, _) in enumerate(line):
        if action != CONVERSION:
            continue
        for click in line[:i]:
            if click[0] == item and click[1] == CLICK and time - click[3] <= attribution_window_s:
                click[4] = False
    kept = []
    for item, action, domain, time, there in line:
        repeats = any(
            k[0] == item and k[1] == action and time - k[3] <= repeat_window_s for k in kept
        )
        if there and not repeats:
            kept.append((item, action, domain, time))
    while len(kept) > max_events:
        kept = kept[block:]
    return kept
