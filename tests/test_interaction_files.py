"""Tables of interactions as people have them: without a header, RecBole's, MovieLens', with commas in their ids."""

import gzip

import pytest
from typer.testing import CliRunner

from offprint.data import interactions
from offprint.data.interactions import from_pairs, load_interactions
from offprint.errors import DataError, OffprintError

RATINGS = [(1, 1193, 5, 978300760), (1, 661, 3, 978302109), (2, 1193, 4, 978298413), (2, 3068, 0, 978299000)]


def write(folder, name, rows, mark, header=""):
    path = folder / name
    text = "".join(mark.join(map(str, row)) + "\n" for row in rows)
    path.write_text((header + "\n" if header else "") + text)
    return path


def found(data, part="train"):
    matrix = getattr(data, part)
    return {(data.user_ids[u], data.item_ids[i]) for u, i in zip(*matrix.nonzero(), strict=True)}


@pytest.mark.parametrize(
    ("name", "mark", "header"),
    [
        ("ratings.dat", "::", ""),
        ("u.data", "\t", ""),
        ("ratings.csv", ",", "userId,movieId,rating,timestamp"),
        ("ratings.csv", ",", ""),
        ("ml.inter", "\t", "user_id:token\titem_id:token\trating:float\ttimestamp:float"),
        ("x.tsv", "\t", "user_id:token\titem_id:token\trating:float\ttimestamp:float"),
    ],
)
def test_one_table_in_every_form(tmp_path, name, mark, header):
    file = write(tmp_path, name, RATINGS, mark, header)
    for source in (file, tmp_path) if name != "x.tsv" else (file,):
        data = load_interactions(source, split="none")
        assert found(data) == {(1, 1193), (1, 661), (2, 1193)}  # the rating of 0 does not count
        liked = load_interactions(source, split="none", min_weight=4)
        assert found(liked) == {(1, 1193), (2, 1193)}
        last = load_interactions(source, split="leave-one-out", min_weight=1)
        assert found(last, "test") == {(1, 661)}  # by the time


def test_packed_movielens(tmp_path):
    (tmp_path / "ratings.dat.gz").write_bytes(gzip.compress(b"1::10::5::978300760\n1::11::3::978302109\n"))
    assert found(load_interactions(tmp_path / "ratings.dat.gz", split="none")) == {(1, 10), (1, 11)}


def test_names_without_a_header(tmp_path):
    file = write(tmp_path, "x.csv", [("ann", "tea", 2.5, "2026-01-01"), ("ann", "rye", 1, "2026-01-03")], ",")
    data = load_interactions(file, split="leave-one-out")
    assert found(data) == {("ann", "tea")} and found(data, "test") == {("ann", "rye")}
    assert data.notes[0] == "no header: the columns are user, item, weight and time, as in MovieLens"
    file = write(tmp_path, "y.csv", [("ann", "tea", 3), ("bob", "rye", 0)], ",")
    data = load_interactions(file, split="none")
    assert found(data) == {("ann", "tea"), ("bob", "rye")} and "--columns weight=3" in data.notes[0]
    data = load_interactions(file, split="none", columns={"weight": "3"})
    assert found(data) == {("ann", "tea")}
    data = load_interactions(file, split="none", columns={"user": "2", "item": "1"})
    assert found(data) == {("tea", "ann"), ("rye", "bob")}


def test_names_alone_are_taken_for_a_header_and_the_error_helps(tmp_path):
    file = write(tmp_path, "x.csv", [("ann", "tea"), ("bob", "rye")], ",")
    with pytest.raises(
        DataError, match=r"no column named user and item; its columns: ann, tea.*--columns user=1,item=2"
    ):
        load_interactions(file)
    data = load_interactions(file, split="none", columns={"user": "1", "item": "2"})
    assert found(data) == {("ann", "tea"), ("bob", "rye")}
    with pytest.raises(DataError, match="has 2 columns, numbered from 1; item=3 is none of them"):
        load_interactions(file, columns={"user": "1", "item": "3"})
    with pytest.raises(DataError, match="one column cannot be two things; given: user=2, item=2"):
        load_interactions(file, columns={"user": "2"})
    with pytest.raises(OffprintError, match="unknown role of a column 'usr'; nearest: user"):
        load_interactions(file, columns={"usr": "1"})


def test_ids_with_commas_and_quotes(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text('user,item\n"Lee, Ann","rye, dark"\n"Lee, Ann",tea\n"say ""hi""",tea\n')
    data = load_interactions(file, split="none")
    assert found(data) == {("Lee, Ann", "rye, dark"), ("Lee, Ann", "tea"), ('say "hi"', "tea")}
    file.write_text("user,item\nLee, Ann,tea\n")
    with pytest.raises(DataError, match="line 2: 3 fields, expected 2.*stands in double quotes"):
        load_interactions(file)
    file = tmp_path / "x.inter"  # RecBole quotes nothing, so that a quote is a letter of the id
    file.write_text('user_id:token\titem_id:token\n1\t"Weird Al\n2\ta, b\n')
    assert found(load_interactions(file, split="none")) == {(1, '"Weird Al'), (2, "a, b")}


def test_recboles_sequences_and_names(tmp_path):
    header = "session_id:token\titem_id_list:token_seq\titem_id:token"
    file = write(tmp_path, "x.inter", [("s1", "1 2 3", "4")], "\t", header)
    data = load_interactions(file, split="none", columns={"user": "session_id"})
    assert found(data) == {("s1", 4)}
    with pytest.raises(DataError, match=r"the item is in 'item_id_list:token_seq', a column of sequences"):
        load_interactions(file, columns={"user": "session_id:token", "item": "item_id_list"})


def test_folders_say_what_they_hold(tmp_path):
    (tmp_path / "movies.dat").write_text("1::Film\n")
    with pytest.raises(
        DataError, match=r"no ratings\.dat, u\.data, ratings\.csv.*it holds movies\.dat\. Give the file"
    ):
        load_interactions(tmp_path)


def test_latin_text_is_named_with_a_remedy(tmp_path):
    (tmp_path / "x.csv").write_bytes("user,item\ncafé,1\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8 text.*iconv -f latin1"):
        load_interactions(tmp_path / "x.csv")


def test_times_that_are_not_there(tmp_path):
    file = write(tmp_path, "x.csv", [("a", "b"), ("a", "c")], ",", "user,item")
    with pytest.raises(DataError, match=r"--columns time=.*leave-one-out"):
        load_interactions(file, split="temporal")


def test_the_query_takes_an_item_with_a_comma(tmp_path):
    from offprint.cli.main import app
    from offprint.tasks.recommendation import train_recommender

    users = [u for u in "abcdef" for _ in range(3)]
    data = from_pairs(users, ["rye, dark", "tea", "jam"] * 3 + ["tea", "jam", "oats"] * 3, split="none")
    train_recommender("lightgcn", data, tmp_path / "run", overrides={"epochs": 1}, progress=False)
    result = CliRunner().invoke(
        app, ["recommend", "query", str(tmp_path / "run"), "--items", '"rye, dark", tea', "-k", "9"]
    )
    assert result.exit_code == 0, result.exception
    assert "jam" in result.output and "oats" in result.output and "rye" not in result.output


def test_the_old_names_answer_with_a_warning():
    from offprint.data import draws

    with pytest.warns(DeprecationWarning, match="now offprint.data.draws.Triples"):
        assert interactions.Triples is draws.Triples
    with pytest.raises(AttributeError):
        interactions.Nothing  # noqa: B018
