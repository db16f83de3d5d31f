from pipeline.bench.index import bench_index


def test_a_synthetic_index_opens_without_its_sidecars() -> None:
    table = bench_index(clips=500, frames=3, clips_a_shard=7)
    assert (table.figures["clips"], table.figures["frames"]) == (500, 1500)
    assert [row[0] for row in table.rows] == ["manifest", "open", "clip_of", "times of all frames"]


def test_a_synthetic_store_is_merged_from_its_sidecars() -> None:
    table = bench_index(clips=200, frames=3, clips_a_shard=7, merge=True)
    assert (table.figures["clips"], table.figures["frames"]) == (200, 600)
    assert [row[0] for row in table.rows][:2] == ["merge", "manifest"]
    assert table.figures["merge"]["peak"] > 0
