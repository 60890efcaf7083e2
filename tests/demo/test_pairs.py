from mfpo_trl.demo import pairs as pairs_module
from mfpo_trl.demo.pairs import preference_pairs
from mfpo_trl.demo.scenes import OBJECTS, make_scenes


def test_only_hallucinated_drafts_become_pairs(monkeypatch):
    scenes = make_scenes(4, seed=0, company=0.0)
    absent = [next(name for name in OBJECTS if name not in scene.names) for scene in scenes]
    drafts = [scenes[0].caption, f"a {absent[1]} .", f"a {absent[2]} .", f"a {absent[3]} ."]
    monkeypatch.setattr(pairs_module, "write_captions", lambda *_, **__: drafts)
    pairs = preference_pairs(None, None, scenes, most=2)
    assert [row["rejected"][0]["content"] for row in pairs] == drafts[1:3]
    assert [row["chosen"][0]["content"] for row in pairs] == [scenes[1].caption, scenes[2].caption]
    assert pairs[0]["key_regions"] == [list(thing.box) for thing in scenes[1].things]
    assert pairs[0]["images"][0].size == (48, 48)
