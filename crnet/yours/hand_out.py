"""``crnet episodes-for-others``: the stored test episodes as JSON, with photos if asked, for another framework.

``episodes.json`` lists, for each episode, its id, the class, the query and the supports by photo id, the query's size,
and the name of the PNG that is expected back. With photos, ``photos`` and ``masks`` map ids to files. A mask is written
for a photo and a class only where that photo is a support of an episode of that class. Test photos of a benchmark
serve as query here and support there, so that such a mask may be some other episode's answer: a method must use the
masks of the episode at hand alone.
"""

import re
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from crnet.data.index import Index
from crnet.errors import CrnetError
from crnet.runtime.files import sha256_file, sha256_text, write_json
from crnet.yours.places import Place

FORMAT = 1
NAME = "episodes.json"
RULE = (
    "Write one PNG an episode under its name in 'prediction', as wide and high as the query, 0 background and 255 or 1 "
    "foreground; use no mask but those of the episode's own supports."
)
MASK_RULE = "0 background, 1 the episode's class, 255 void"


def hand_out(places: list[Place], study: str, out: Path, photos: bool = False, force: bool = False) -> str:
    """Write the episodes of the places, folds of one table, into the folder ``out``; returns what was written.

    Raises:
        CrnetError: Data or episodes are not here, or ``out`` has content and ``force`` is not given.
    """
    opened = [(place, *place.read()) for place in places]
    fresh_folder(out, force, {NAME, "photos", "masks"})
    episodes: list[dict[str, Any]] = []
    wanted: dict[str, tuple[Index, str]] = {}
    masks: dict[tuple[str, int], Index] = {}
    for place, index, table in opened:
        for episode in table.episodes:
            supports = episode.supports[: place.shots]
            name = place.episode_id(episode.seed, episode.number)
            height, width = index.size(episode.query)
            episodes.append({
                "id": name,
                "fold": place.fold,
                "class": episode.class_id,
                "class_name": index.class_name(episode.class_id),
                "query": episode.query,
                "query_height": height,
                "query_width": width,
                "supports": list(supports),
                "prediction": f"{name}.png",
            })  # fmt: skip
            wanted |= {photo: (index, photo) for photo in (episode.query, *supports)}
            masks |= {(photo, episode.class_id): index for photo in supports}
    about = {
        "format": FORMAT,
        "rule": RULE,
        **{"study": study, "table": places[0].table, "shots": places[0].shots},
        "folds": [place.fold for place in places],
        "episodes_digests": {place.episodes_name: sha256_file(place.episodes_file)
                             for place in places},
        "dataset_digests": sorted({index.digest for _, index, _ in opened}),
    }  # fmt: skip
    if photos:
        about |= {"mask_values": MASK_RULE, **_write_photos(wanted, masks, out)}
    write_json(out / NAME, {**about, "episodes": episodes})  # last: where it is, all of it is there
    said = f" with {len(wanted)} photos and {len(masks)} support masks" if photos else ""
    return f"{out / NAME}: {len(episodes)} episodes of {places[0].table}, {places[0].shots}-shot{said}"


def _write_photos(
    wanted: dict[str, tuple[Index, str]], masks: dict[tuple[str, int], Index], out: Path
) -> dict[str, dict[str, Any]]:
    files: dict[str, str] = {}
    for photo, (index, _) in tqdm(sorted(wanted.items()), desc="writing photos", unit="photo", mininterval=1):
        files[photo] = f"photos/{safe_name(photo)}.png"
        save_png(index.read_image(photo), out / files[photo])
    support_masks: dict[str, dict[str, str]] = {}
    for (photo, class_id), index in masks.items():
        name = f"masks/{safe_name(photo)}-class{class_id}.png"
        support_masks.setdefault(photo, {})[str(class_id)] = name
        save_png(index.class_mask(photo, class_id), out / name)
    return {"photos": files, "support_masks": support_masks}


def safe_name(photo: str) -> str:
    """A photo's id as a file name, its own for every id."""
    plain = re.sub(r"[^\w.-]", "_", photo)
    return plain if plain == photo else f"{plain}-{sha256_text(photo)[:8]}"


def save_png(pixels, path: Path) -> None:
    """uint8 (H, W) or (H, W, 3) as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "PNG")


def fresh_folder(out: Path, force: bool, own: set[str] | None = None) -> None:
    """Make the folder, which must be empty unless ``force``: then what is ``own`` of it is removed, or if None nothing.

    Raises:
        CrnetError: It is a file, or has content.
    """
    if out.exists() and not out.is_dir():
        raise CrnetError(f"{out}: is a file; give a folder.")
    if out.is_dir() and any(out.iterdir()):
        if not force:
            raise CrnetError(f"{out}: is not empty; give another folder, or --force to write into it.")
        for name in own or ():
            path = out / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    make_folder(out)


def make_folder(out: Path) -> None:
    """Make a folder and those above it; raises CrnetError if the system does not let it be made."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CrnetError(f"{out}: the folder cannot be made ({error.strerror}); give another.") from error
