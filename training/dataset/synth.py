"""The generated shop: a data folder with something to learn and nothing to download. Knows no
model.

What a recommender can find in it, strongest first:
  1. accessories follow the main product of their own collection (a camera, then its bag, its lens);
  2. collections are bought through in order (part 1, then part 2);
  3. every user has tastes: a few categories, a few brands, a price band, tied loosely to gender and
  age; 4. popularity has a long tail.
Behaviours carry the noise that behaviour cleaning is for: exposures, repeated clicks, clicks before
conversions, two domains.
"""

import csv
import json
import os
from dataclasses import dataclass

import numpy as np

START_S = 1_735_689_600  # 2025-01-01
CITIES = ("Berlin", "Lyon", "Osaka", "Porto", "Quito", "Turku")
STYLES = ("classic", "sport", "compact", "deluxe", "eco", "travel", "studio", "junior")
BRANDS = tuple(
    f"{a}{b}"
    for a in ("Al", "Bo", "Ce", "Da", "Ki", "Lu")
    for b in ("vira", "netto", "mund", "tali", "rix")
)
PRICE_BANDS = ("budget", "mid-range", "premium")
# category -> (main products, accessories)
CATEGORIES = {
    "Cameras": (("camera", "action cam"), ("lens", "camera bag", "tripod", "memory card")),
    "Coffee": (("espresso machine", "moka pot"), ("grinder", "milk jug", "tamper", "descaler")),
    "Cycling": (("city bike", "road bike"), ("helmet", "bike lock", "pump", "bike light")),
    "Running": (("running shoes", "sports watch"), ("running socks", "belt", "bottle", "cap")),
    "Skin Care": (("face cream", "serum"), ("cleanser", "toner", "face mask", "eye cream")),
    "Makeup": (("lipstick", "palette"), ("brush set", "remover", "primer", "mirror")),
    "Gaming": (("console", "gaming mouse"), ("controller", "headset", "mouse pad", "charger")),
    "Kitchen": (("chef knife", "frying pan"), ("sharpener", "cutting board", "lid", "apron")),
    "Garden": (("mower", "hedge trimmer"), ("gloves", "hose", "rake", "seed set")),
    "Baby": (("pram", "baby carrier"), ("rain cover", "bib set", "blanket", "bottle set")),
    "Books": (("novel", "cookbook"), ("bookmark", "reading lamp", "notebook", "book stand")),
    "Audio": (("headphones", "speaker"), ("carry case", "audio cable", "ear pads", "stand")),
}
# The categories women and men of the shop lean to; everyone may like any.
LEANINGS = {
    "F": ("Skin Care", "Makeup", "Running", "Books"),
    "M": ("Gaming", "Cycling", "Audio", "Cameras"),
}
# How the next item of a user is chosen.
P_ACCESSORY, P_COLLECTION, P_TASTE = 0.45, 0.20, 0.25  # the rest: by popularity


@dataclass(frozen=True)
class Shop:
    """items: N rows of items.jsonl; collections: lists of item rows, main product first, parts in
    order; collection_of,
    category, brand, band: int [N], numbers of each item's; popularity: float [N], sums to 1."""

    items: list
    collections: list
    collection_of: np.ndarray
    category: np.ndarray
    brand: np.ndarray
    band: np.ndarray
    popularity: np.ndarray


def make_shop(num_items, rng):
    """A catalogue of `num_items` items in collections of one main product and its accessories."""
    names = tuple(CATEGORIES)
    items, collections, numbers = [], [], []
    while len(items) < num_items:
        number = len(collections)
        category = names[number % len(names)]
        brand_number = int(rng.integers(len(BRANDS)))
        band = brand_number % len(PRICE_BANDS)  # a brand stays in its price band
        mains, accessories = CATEGORIES[category]
        name, style = _collection_name(number), STYLES[int(rng.integers(len(STYLES)))]
        parts = [
            mains[int(rng.integers(len(mains)))],
            *rng.permutation(accessories)[: int(rng.integers(3, 5))],
        ]
        rows = []
        for position, part in enumerate(parts[: num_items - len(items)]):
            price = float(
                np.round(
                    (12, 45, 160)[band] * (1.0 if position == 0 else 0.35) * rng.lognormal(0, 0.25),
                    2,
                )
            )
            rows.append(len(items))
            numbers.append((number, number % len(names), brand_number, band))
            items.append(
                {
                    "id": len(items) + 1,
                    "title": f"{BRANDS[brand_number]} {name} {style} {part}",
                    "attributes": [
                        BRANDS[brand_number],
                        category,
                        str(part),
                        style,
                        PRICE_BANDS[band],
                    ],
                    "category": category,
                    "price": price,
                    "ecpm": float(np.round(2 + 0.05 * price * rng.lognormal(0, 0.5), 3)),
                }
            )
        collections.append(rows)
    popularity = rng.permutation(1.0 / (np.arange(num_items) + 10.0))
    return Shop(items, collections, *np.array(numbers).T, popularity / popularity.sum())


def make_user(user_id, rng):
    """Profile of one user; now and then a feature is missing, as in real logs."""
    profile = {
        "gender": "F" if rng.random() < 0.5 else "M",
        "age": int(np.clip(rng.normal(37, 13), 16, 80)),
        "city": CITIES[int(rng.integers(len(CITIES)))],
    }
    for name in list(profile):
        if rng.random() < 0.03:
            del profile[name]
    return {"user_id": user_id, **profile}


class Taste:
    """What one user likes: draws items of favourite categories, brands and price band."""

    def __init__(self, profile, shop, rng):
        names = list(CATEGORIES)
        lean = np.array(
            [4.0 if c in LEANINGS.get(profile.get("gender"), ()) else 1.0 for c in names]
        )
        chosen = rng.choice(
            len(names), size=int(rng.integers(2, 4)), replace=False, p=lean / lean.sum()
        )
        age = profile.get("age", 37)
        band = int(np.clip(rng.normal((age - 16) / 24, 0.6), 0, 2))
        favourites = rng.choice(len(BRANDS), size=4, replace=False)
        weight = np.isin(shop.category, chosen) * np.where(shop.band == band, 3.0, 0.5)
        weight = weight * np.where(np.isin(shop.brand, favourites), 4.0, 1.0) * shop.popularity
        if not weight.any():  # a catalogue of a few items may have none of the liked categories
            weight = shop.popularity
        self.cumulative = np.cumsum(weight)

    def draw(self, rng):
        return int(
            np.searchsorted(self.cumulative, rng.random() * self.cumulative[-1], side="right")
        )


def make_line(shop, taste, length, rng):
    """The distinct items one user takes, in order: int rows into shop.items."""
    popular = np.cumsum(shop.popularity)
    line, seen = [], set()
    length = min(length, len(shop.items) // 2 + 1)
    for _ in range(20 * length):
        if len(line) == length:
            break
        item = _next_item(shop, taste, popular, line, seen, rng)
        if item not in seen:
            seen.add(item)
            line.append(item)
    return line


def _next_item(shop, taste, popular, line, seen, rng):
    choice = rng.random()
    if line and choice < P_ACCESSORY + P_COLLECTION:
        rows = shop.collections[shop.collection_of[line[-1]]]
        rest = [r for r in rows if r not in seen]
        if rest:
            in_order = rows[0] != line[-1] or choice < P_COLLECTION
            return rest[0] if in_order else rest[int(rng.integers(len(rest)))]
    elif choice < P_ACCESSORY + P_COLLECTION + P_TASTE:
        return taste.draw(rng)
    if rng.random() < 0.7:
        return taste.draw(rng)
    return int(np.searchsorted(popular, rng.random(), side="right"))


def make_events(shop, line, rng):
    """(item id, action, domain, time) tuples of one user: exposures, clicks, repeats,
    conversions.
    """
    time = START_S + int(rng.integers(60 * 86400))
    events = []
    for row in line:
        time += int(rng.exponential(1.5 * 86400)) + 3600
        item, domain = shop.items[row]["id"], "ad" if rng.random() < 0.3 else "content"
        if rng.random() < 0.3:
            other = shop.items[int(rng.integers(len(shop.items)))]["id"]
            events.append((other, "exposure", domain, time - 30))
        events.append((item, "exposure", domain, time - 5))
        events.append((item, "click", domain, time))
        if rng.random() < 0.15:
            events.append((item, "click", domain, time + int(rng.integers(20, 600))))
        if rng.random() < 0.35:
            events.append((item, "conversion", domain, time + int(rng.integers(700, 3500))))
    return events


def write_shop(path, num_users, num_items, seed):
    """Writes items.jsonl, users.jsonl and events.csv. Same arguments, same bytes."""
    if num_items < 1 or num_users < 1:
        raise ValueError(f"users = {num_users}, items = {num_items}: expected at least 1 of each")
    rng = np.random.default_rng(seed)
    shop = make_shop(num_items, rng)
    os.makedirs(path, exist_ok=True)
    _write_json_lines(os.path.join(path, "items.jsonl"), shop.items)
    users = [make_user(u + 1, rng) for u in range(num_users)]
    _write_json_lines(os.path.join(path, "users.jsonl"), users)
    count = 0
    with open(os.path.join(path, "events.csv"), "w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(("user_id", "item_id", "action", "domain", "timestamp"))
        for user in users:
            length = int(np.clip(rng.lognormal(2.5, 0.55), 1, 120))
            line = make_line(shop, Taste(user, shop, rng), length, rng)
            for event in make_events(shop, line, rng):
                writer.writerow((user["user_id"], *event))
                count += 1
    return count


def _collection_name(number):
    """A pronounceable name that is distinct for every number."""
    first = (
        "Au",
        "Be",
        "Cor",
        "Del",
        "Ely",
        "Fen",
        "Gal",
        "Hel",
        "Iso",
        "Jun",
        "Kor",
        "Lum",
        "Mir",
        "Nov",
        "Ori",
    )
    last = (
        "ra",
        "lo",
        "nix",
        "va",
        "tus",
        "mi",
        "sen",
        "da",
        "go",
        "ris",
        "pe",
        "zel",
        "wyn",
        "bo",
    )
    turn, rest = divmod(number, len(first) * len(last))
    name = first[rest % len(first)] + last[rest // len(first)]
    return name if turn == 0 else f"{name} {turn + 1}"


def _write_json_lines(path, rows):
    with open(path, "w", encoding="utf-8") as f:
        for row in rows:
            f.write(json.dumps(row, ensure_ascii=False) + "\n")


def configure(parser):
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--users", type=int, default=2000, help="users (default 2000)")
    parser.add_argument("--items", type=int, default=1000, help="items (default 1000)")
    parser.add_argument("--seed", type=int, default=0)


def main(args):
    events = write_shop(args.output, args.users, args.items, args.seed)
    print(f"{args.output}: {args.items} items, {args.users} users, {events} events")
