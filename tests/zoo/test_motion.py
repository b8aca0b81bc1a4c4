"""The world in motion: its checker reads true films and catches false ones; flicker is of what does not move."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from zoo.shapes.captions import unknown_words
from zoo.shapes.film import Window, film, paint
from zoo.shapes.flicker import flicker, still_parts
from zoo.shapes.motion import FRAMES, ROUND, Motion, MovingScene, held_out, pose, random_moving_scene
from zoo.shapes.motion_captions import DOES, DOING, VOCABULARY, motion_caption
from zoo.shapes.motion_checker import FEWEST, film_faults, read_film
from zoo.shapes.world import COLOURS, SHAPES

Film = NDArray[np.uint8]
SCENE = MovingScene("beige", "red", "square", Motion.LEFT)


def scenes(count: int, seed: int) -> list[MovingScene]:
    rng = np.random.default_rng(seed)
    return [random_moving_scene(rng, unseen=bool(i % 2)) for i in range(count)]


def soft(truth: Film, rng: np.random.Generator) -> Film:
    """What an autoencoder makes of a film at worst: blurred edges, a little noise."""
    blurred = ndimage.gaussian_filter(truth.astype(np.float32), (0.3, 1, 1, 0)) + rng.normal(0, 4, truth.shape)
    drawn: Film = np.clip(blurred, 0, 255).astype(np.uint8)
    return drawn


def test_checker_reads_true_films() -> None:
    rng = np.random.default_rng(11)
    wrong = [scene for scene in scenes(400, 11) if film_faults(film(scene, rng), scene)]
    assert len(wrong) < 4, wrong


def test_checker_survives_softness_and_noise() -> None:
    rng = np.random.default_rng(12)
    wrong = [scene for scene in scenes(200, 12) if film_faults(soft(film(scene, rng), rng), scene)]
    assert len(wrong) <= 4, wrong


@pytest.mark.parametrize("frames", [9, 33])
def test_checker_reads_shorter_and_longer_films(frames: int) -> None:
    rng = np.random.default_rng(13)
    assert not [scene for scene in scenes(40, 13) if film_faults(film(scene, rng, frames), scene)]


@pytest.mark.parametrize("motion", Motion)
def test_checker_tells_every_motion_from_every_other(motion: Motion) -> None:
    scene = replace(SCENE, motion=motion)
    seen = read_film(film(scene, np.random.default_rng(3)))
    assert (seen.background, seen.things, seen.colour, seen.shape, seen.motion) == ("beige", 1, "red", "square", motion)
    for other in set(Motion) - {motion}:
        assert film_faults(film(scene, np.random.default_rng(3)), replace(scene, motion=other)) == ["motion"]


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (replace(SCENE, background="white"), "background"),
        (replace(SCENE, colour="pink"), "colour"),
        (replace(SCENE, shape="diamond"), "shape"),
    ],
)
def test_checker_names_what_is_wrong(wrong: MovingScene, fault: str) -> None:
    truth = film(SCENE, np.random.default_rng(3))
    assert film_faults(truth, SCENE) == []
    assert film_faults(truth, wrong) == [fault]


def test_a_thing_in_one_frame_only_and_an_empty_film_are_seen() -> None:
    truth = film(SCENE, np.random.default_rng(3))
    truth[7, 50:60, 2:12] = (40, 76, 220)
    assert film_faults(truth, SCENE) == ["count"]
    assert read_film(truth).things == 2
    assert read_film(np.full((FRAMES, 64, 64, 3), 250, np.uint8)).things == 0


def test_a_frozen_film_and_an_aimless_one_have_no_motion() -> None:
    truth = film(SCENE, np.random.default_rng(3))
    assert read_film(truth[[0] * FRAMES]).motion is None
    assert read_film(truth[[0, 16] * 8]).motion is None


def test_played_backwards_a_film_shows_the_opposite() -> None:
    truth = film(SCENE, np.random.default_rng(4))
    assert read_film(truth[::-1]).motion is Motion.RIGHT
    grown = film(replace(SCENE, motion=Motion.GROW), np.random.default_rng(4))
    assert read_film(grown[::-1]).motion is Motion.SHRINK


def test_checker_refuses_other_shapes() -> None:
    for shape in ((FRAMES, 32, 32, 3), (64, 64, 3), (FEWEST - 1, 64, 64, 3)):
        with pytest.raises(ValueError, match=f"at least {FEWEST} frames of 64x64"):
            read_film(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("shape", sorted(ROUND))
def test_nothing_round_spins(shape: str) -> None:
    with pytest.raises(ValueError, match=f"spinning {shape} looks still"):
        replace(SCENE, shape=shape, motion=Motion.SPIN)
    assert all(scene.motion is not Motion.SPIN or scene.shape not in ROUND for scene in scenes(300, 1))


def test_things_stay_inside_and_every_frame_differs_from_the_last() -> None:
    rng = np.random.default_rng(6)
    for scene in scenes(200, 6):
        drawn = film(scene, rng)
        edge = np.concatenate([drawn[:, [0, -1]].reshape(-1, 3), drawn[:, :, [0, -1]].reshape(-1, 3)])
        assert (edge == edge[0]).all(), scene
        assert (np.abs(np.diff(drawn.astype(int), axis=0)).sum((1, 2, 3)) > 0).all(), scene


def test_a_window_is_a_part_of_the_film() -> None:
    way = pose(Motion.ORBIT, np.random.default_rng(0))
    assert {track.dtype for track in (way.x, way.y, way.radius, way.angle)} == {np.dtype(np.float32)}
    scene = replace(SCENE, motion=Motion.ORBIT)
    part = paint(scene, way.part(4, 9), Window(10, 20, 32))
    assert (part == paint(scene, way)[4:13, 20:52, 10:42]).all()
    with pytest.raises(ValueError, match="at least 2 frames"):
        pose(Motion.SPIN, np.random.default_rng(0), frames=1)


def test_training_and_unseen_scenes_never_meet_and_every_motion_has_both() -> None:
    rng = np.random.default_rng(2)
    seen, unseen = ([random_moving_scene(rng, unseen=kind) for _ in range(500)] for kind in (False, True))
    assert not any(map(held_out, seen)) and all(map(held_out, unseen))
    assert {scene.motion for scene in seen} == {scene.motion for scene in unseen} == set(Motion)
    assert {scene.colour for scene in unseen} == set(COLOURS) and {scene.shape for scene in unseen} == set(SHAPES)


def test_captions_name_everything_with_known_words_and_no_two_motions_alike() -> None:
    rng = np.random.default_rng(1)
    for scene in scenes(500, 1):
        text = motion_caption(scene, rng)
        assert unknown_words(text, VOCABULARY) == []
        assert scene.colour in text and "background" in text
        assert any(phrase in text for phrase in (*DOING[scene.motion], *DOES[scene.motion]))
    assert "background" not in motion_caption(SCENE, rng, background=False)
    expected = "a red square moving left on a beige background"
    assert motion_caption(SCENE, rng, plain=True) == expected
    phrases = [phrase for table in (DOING, DOES) for words in table.values() for phrase in words]
    assert len(set(phrases)) == len(phrases)


def test_a_true_film_does_not_flicker_whatever_moves() -> None:
    rng = np.random.default_rng(8)
    assert [flicker(film(scene, rng)) for scene in scenes(50, 8)] == [0.0] * 50


def test_flicker_is_the_mean_change_of_the_background() -> None:
    truth = film(SCENE, np.random.default_rng(8))
    flashing = truth.copy()
    flashing[1::2] = np.clip(flashing[1::2].astype(int) - 3, 0, 255)
    assert flicker(flashing) == pytest.approx(3, abs=0.02)
    assert flicker(flashing, still_parts(truth)) == pytest.approx(3, abs=0.02)
    spot = truth.copy()
    spot[5, 2:8, 2:8] = 255 - spot[5, 2:8, 2:8]  # a flash beside the thing counts, however far it is from the ground
    assert flicker(spot) > 0.1


def test_flicker_refuses_what_it_cannot_judge() -> None:
    truth = film(SCENE, np.random.default_rng(8))
    with pytest.raises(ValueError, match="uint8 frames"):
        flicker(truth[:1])
    with pytest.raises(ValueError, match="got float32"):
        still_parts((truth / 255).astype(np.float32))
    with pytest.raises(ValueError, match="one less frame"):
        flicker(truth, np.ones((FRAMES, 64, 64), bool))
    with pytest.raises(ValueError, match="no part"):
        flicker(truth, np.zeros((FRAMES - 1, 64, 64), bool))
