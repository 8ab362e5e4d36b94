"""Search spaces: every move stays in the space, round trips are exact, and errors name what was wrong."""

import itertools
import json
import pickle
from collections import Counter

import numpy as np
import pytest

from nas_transfer.arch import Arch, Gene
from nas_transfer.errors import ArchError, ConfigError
from nas_transfer.space import SearchSpace


@pytest.fixture
def space() -> SearchSpace:
    """2 * 3 * 2 * 1 * 3 = 36 archs: small enough to list them all."""
    return SearchSpace(
        "toy",
        (
            Gene("resolution", (48, 64)),
            Gene("width.a", (8, 16, 24)),
            Gene("width.b", (16, 32)),
            Gene("depth.a", (1,)),
            Gene("depth.b", (2, 3, 5)),
        ),
    )


@pytest.fixture
def every_arch(space: SearchSpace) -> set[Arch]:
    """The whole space by brute force, independent of the space's own moves."""
    combinations = itertools.product(*(gene.choices for gene in space.genes))
    return {Arch("toy", tuple(gene.name for gene in space.genes), values) for values in combinations}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class TestGene:
    @pytest.mark.parametrize("choices", [(), (2, 1), (1, 1), (1.0, 2.0), (-1, 2), (True, 2), ("a",)])
    def test_choices_must_be_ascending_integers(self, choices: tuple) -> None:
        with pytest.raises(ConfigError, match=r"'width\.a'"):
            Gene("width.a", choices)

    def test_a_list_of_choices_becomes_a_tuple_so_that_the_gene_is_hashable(self) -> None:
        assert hash(Gene("depth.a", [1, 2])) == hash(Gene("depth.a", (1, 2)))  # type: ignore[arg-type]


class TestSpace:
    def test_size_equals_the_number_of_archs_listed_by_brute_force(self, space, every_arch) -> None:
        assert space.size == len(every_arch) == 36

    def test_size_is_exact_beyond_64_bits(self) -> None:
        genes = tuple(Gene(f"op.{index}", (0, 1, 2, 3)) for index in range(40))
        assert SearchSpace("detnas", genes).size == 4**40

    def test_smallest_and_largest_bound_every_arch(self, space, every_arch) -> None:
        low, high = space.smallest(), space.largest()
        assert low.values == (48, 8, 16, 1, 2)
        assert high.values == (64, 24, 32, 1, 5)
        for arch in every_arch:
            assert all(a <= b <= c for a, b, c in zip(low.values, arch.values, high.values, strict=True))

    @pytest.mark.parametrize(
        "names",
        [
            ("width.a", "width.a"),  # repeated
            ("width.a", "depth.a", "width.b"),  # scattered group: the dict form would lose the order
            ("width", "width.a"),  # a group that is also a gene
            ("width.a", "width"),
            ("space",),  # the key that names the space
            (),
        ],
    )
    def test_genes_that_the_dict_form_cannot_hold_are_refused(self, names: tuple[str, ...]) -> None:
        with pytest.raises(ConfigError):
            SearchSpace("broken", tuple(Gene(name, (1, 2)) for name in names))

    def test_validate_names_the_gene_the_value_and_the_choices(self, space) -> None:
        arch = Arch("toy", space.names, (48, 8, 17, 1, 2))
        with pytest.raises(ArchError, match=r"gene 'width\.b' .* one of \[16, 32\], got 17"):
            space.validate(arch)

    def test_validate_refuses_an_arch_of_another_space_and_of_other_genes(self, space) -> None:
        with pytest.raises(ArchError, match="'toy', got one of space 'other'"):
            space.validate(Arch("other", space.names, space.smallest().values))
        with pytest.raises(ArchError, match=r"width\.c"):
            space.validate(Arch("toy", ("width.c",), (8,)))

    def test_genes_that_mean_nothing_have_one_value_in_every_move(self) -> None:
        depth = Gene("depth.a", (1, 2, 3))
        kernels = [Gene(f"kernel.a.{block}", (3, 5), ("depth.a", block + 1) if block else None) for block in range(3)]
        space = SearchSpace("dropping", (depth, *kernels))
        every = {space.arch(values) for values in itertools.product((1, 2, 3), (3, 5), (3, 5), (3, 5))}
        assert space.size == len(every) == 2 + 4 + 8
        assert space.count({"depth.a": 2}) == 4
        assert space.count({"depth.a": 3, "kernel.a.2": 5}) == 4
        generator = rng()
        archs = [space.sample(generator) for _ in range(300)]
        moved = [space.mutate(arch, generator, 0.5) for arch in archs]
        mixed = [space.crossover(*pair, generator) for pair in zip(archs, moved, strict=True)]
        for found in (archs, moved, mixed, [space.decode(space.encode(arch)) for arch in archs]):
            assert set(found) <= every
        assert set(archs) == set(moved) == every
        with pytest.raises(ArchError, match="first choice"):
            space.validate(Arch("dropping", space.names, (1, 3, 5, 3)))

    def test_a_gene_that_gains_an_effect_is_drawn_anew(self) -> None:
        kernel = Gene("kernel.a", (3, 5), ("depth.a", 2))
        space = SearchSpace("dropping", (Gene("depth.a", (1, 2)), kernel))
        generator = rng()
        children = [space.mutate(space.smallest(), generator, 0.5, {"depth.a": 2}) for _ in range(400)]
        assert np.mean([child["kernel.a"] == 5 for child in children]) == pytest.approx(0.5, abs=0.1)

    @pytest.mark.parametrize("needs", [("depth.b", 2), ("kernel.a", 3)])
    def test_a_gene_needs_one_that_is_there_and_free(self, needs: tuple[str, int]) -> None:
        genes = (Gene("depth.a", (1, 2)), Gene("kernel.a", (3, 5), ("depth.a", 2)), Gene("kernel.b", (3, 5), needs))
        with pytest.raises(ConfigError, match=r"'kernel\.b' must need"):
            SearchSpace("broken", genes)

    def test_a_pickled_space_and_arch_equal_the_originals(self, space) -> None:
        space.sample(rng())
        copy = pickle.loads(pickle.dumps(space))
        assert copy == space
        copy.validate(pickle.loads(pickle.dumps(space.largest())))


class TestSample:
    def test_draws_cover_the_whole_space_and_nothing_else(self, space, every_arch) -> None:
        generator = rng()
        assert {space.sample(generator) for _ in range(1000)} == every_arch

    def test_each_choice_comes_up_equally_often(self, space) -> None:
        generator = rng()
        counts = Counter(space.sample(generator)["depth.b"] for _ in range(3000))
        # binomial(3000, 1/3) has a standard deviation of 26: 5 of them on either side
        assert all(abs(counts[choice] - 1000) < 130 for choice in (2, 3, 5))

    def test_the_same_seed_draws_the_same_archs(self, space) -> None:
        first, second = rng(7), rng(7)
        assert [space.sample(first) for _ in range(20)] == [space.sample(second) for _ in range(20)]

    def test_freezing_a_gene_leaves_the_draws_of_the_others_unchanged(self, space) -> None:
        free, fixed = rng(3), rng(3)
        for _ in range(50):
            expected = {**dict(zip(space.names, space.sample(free).values, strict=True)), "width.a": 16}
            arch = space.sample(fixed, frozen={"width.a": 16})
            assert dict(zip(arch.names, arch.values, strict=True)) == expected

    def test_freezing_an_unknown_gene_suggests_the_nearest(self, space) -> None:
        with pytest.raises(ArchError, match=r"'widht\.a': try one of \['width\.a'"):
            space.sample(rng(), frozen={"widht.a": 16})

    def test_freezing_to_a_value_outside_the_choices_names_them(self, space) -> None:
        with pytest.raises(ArchError, match=r"gene 'resolution' .* one of \[48, 64\]"):
            space.sample(rng(), frozen={"resolution": 50})


class TestMutate:
    def test_probability_zero_returns_the_arch_and_one_reaches_the_whole_space(self, space, every_arch) -> None:
        generator, start = rng(), space.smallest()
        assert space.mutate(start, generator, 0.0) == start
        assert {space.mutate(start, generator, 1.0) for _ in range(1000)} == every_arch

    def test_genes_change_as_often_as_redrawing_among_all_choices_predicts(self, space) -> None:
        generator, start = rng(), space.smallest()
        changed = sum(space.mutate(start, generator, 0.3)["depth.b"] != 2 for _ in range(3000))
        # 0.3 * 2/3 of 3000 = 600, standard deviation 22: 5 of them on either side
        assert abs(changed - 600) < 110

    def test_a_frozen_gene_takes_its_value_even_against_the_parent(self, space) -> None:
        generator = rng()
        assert all(
            space.mutate(space.smallest(), generator, 0.5, frozen={"resolution": 64})["resolution"] == 64
            for _ in range(20)
        )

    def test_a_probability_outside_0_to_1_is_refused(self, space) -> None:
        with pytest.raises(ConfigError, match=r"got 1\.5"):
            space.mutate(space.smallest(), rng(), 1.5)


class TestCrossover:
    def test_children_are_exactly_all_mixtures_of_the_parents(self, space) -> None:
        generator, first, second = rng(), space.smallest(), space.largest()
        mixtures = set(itertools.product(*({a, b} for a, b in zip(first.values, second.values, strict=True))))
        assert {space.crossover(first, second, generator).values for _ in range(1000)} == mixtures

    def test_a_parent_of_another_space_is_refused(self, space) -> None:
        with pytest.raises(ArchError):
            space.crossover(space.smallest(), Arch("other", ("x",), (1,)), rng())


class TestEncoding:
    def test_decode_inverts_encode_for_every_arch(self, space, every_arch) -> None:
        for arch in every_arch:
            indices = space.encode(arch)
            assert indices.dtype == np.int64
            assert indices.shape == (5,)
            assert all(gene.choices[i] == v for gene, i, v in zip(space.genes, indices, arch.values, strict=True))
            assert space.decode(indices) == arch

    def test_decoded_values_are_plain_integers_so_that_an_arch_is_json(self, space) -> None:
        assert all(type(value) is int for value in space.decode(np.zeros(5, dtype=np.int64)).values)

    @pytest.mark.parametrize("indices", [[0, 0, 0, 0], [0, 3, 0, 0, 0], [0, -1, 0, 0, 0], [0, 0.5, 0, 0, 0]])
    def test_indices_outside_the_choices_are_refused(self, space, indices) -> None:
        with pytest.raises(ArchError):
            space.decode(indices)


class TestDictForm:
    def test_groups_list_their_genes_in_order(self, space) -> None:
        arch = space.largest()
        assert arch.to_dict() == {"space": "toy", "resolution": 64, "width": [24, 32], "depth": [1, 5]}
        assert arch.group("width") == (24, 32)
        assert arch.group("resolution") == (64,)
        assert arch["width.b"] == 32

    def test_an_unknown_gene_or_group_is_a_key_error(self, space) -> None:
        with pytest.raises(KeyError):
            space.smallest()["width.z"]
        with pytest.raises(KeyError):
            space.smallest().group("wid")

    def test_json_and_back_is_the_same_arch_for_the_whole_space(self, space, every_arch) -> None:
        assert all(space.from_dict(json.loads(json.dumps(arch.to_dict()))) == arch for arch in every_arch)

    def test_the_space_may_be_left_out(self, space) -> None:
        assert space.from_dict({"resolution": 48, "width": [8, 16], "depth": [1, 2]}) == space.smallest()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"width": [8, 17]}, r"gene 'width\.b' of space 'toy' must be one of \[16, 32\], got 17"),
            ({"width": [8, "16"]}, r"'width\.b'.*got '16'"),
            ({"depth": [True, 2]}, r"'depth\.a'.*got True"),
            ({"width": [8]}, r"'width' .* a list of 2 values.*\['a', 'b'\]"),
            ({"width": 8}, "'width' of space 'toy' must be a list of 2 values"),
            ({"resolution": [48]}, "'resolution'"),
            ({"kernel": [3]}, r"unknown: \['kernel'\]; the groups are \['resolution', 'width', 'depth'\]"),
            ({"space": "bignas"}, "'toy', got one of space 'bignas'"),
        ],
    )
    def test_a_mapping_that_does_not_fit_is_refused_by_name(self, space, change, message) -> None:
        with pytest.raises(ArchError, match=message):
            space.from_dict({**space.smallest().to_dict(), **change})

    def test_a_missing_group_is_named(self, space) -> None:
        with pytest.raises(ArchError, match=r"'toy': missing: \['depth'\]; the groups are"):
            space.from_dict({"resolution": 48, "width": [8, 16]})

    def test_short_ids_are_eight_stable_hexadecimal_digits_that_tell_all_archs_apart(self, space, every_arch) -> None:
        identifiers = {arch.short_id() for arch in every_arch}
        assert len(identifiers) == 36
        assert all(len(text) == 8 and int(text, 16) >= 0 for text in identifiers)
        assert space.smallest().short_id() == space.from_dict(space.smallest().to_dict()).short_id()


class TestBranches:
    """A gene that chooses a branch, such as a head, and genes that belong to one branch alone."""

    SPACE = SearchSpace(
        "heads",
        (
            Gene("depth", (1, 2)),
            Gene("head", (1, 2), optional=True),
            Gene("a_width", (8, 16, 24), optional=True, only_with=("head", 1)),
            Gene("b_width", (4, 8), optional=True, only_with=("head", 2)),
            Gene("b_levels", (2, 3), optional=True, only_with=("head", 2)),
        ),
    )
    ALL = frozenset(
        [(depth, 1, width, 8, 3) for depth in (1, 2) for width in (8, 16, 24)]
        + [(depth, 2, 24, width, levels) for depth in (1, 2) for width in (4, 8) for levels in (2, 3)]
    )

    def test_the_size_is_the_sum_over_branches_and_every_network_has_one_spelling(self) -> None:
        space = self.SPACE
        spelled = {space.arch(values).values for values in itertools.product(*(gene.choices for gene in space.genes))}
        assert spelled == self.ALL
        assert space.size == len(self.ALL) == 14
        assert space.count({"head": 1}) == 6
        assert space.count({"head": 2, "depth": 1}) == 4
        assert space.count({"b_width": 4}) == 2 * 3 + 2 * 2

    def test_every_move_stays_in_the_space(self) -> None:
        space, generator = self.SPACE, rng()
        drawn = {space.sample(generator).values for _ in range(400)}
        assert drawn == self.ALL
        for _ in range(200):
            one, other = space.sample(generator), space.sample(generator)
            for arch in (space.mutate(one, generator, 0.5), space.crossover(one, other, generator)):
                assert arch.values in self.ALL
                assert space.decode(space.encode(arch)) == arch == space.from_dict(arch.to_dict())

    def test_a_child_has_the_genes_of_the_parent_whose_branch_it_has(self) -> None:
        space, generator = self.SPACE, rng()
        one, other = space.arch((1, 1, 8, 8, 3)), space.arch((1, 2, 24, 4, 2))
        children = {space.crossover(one, other, generator).values for _ in range(50)}
        assert children == {one.values, other.values}

    def test_a_new_branch_draws_its_genes_anew(self) -> None:
        space, generator = self.SPACE, rng()
        arch = space.arch((1, 1, 8, 8, 3))
        moved = {space.mutate(arch, generator, 0.0, {"head": 2}).values for _ in range(100)}
        assert moved == {values for values in self.ALL if values[:2] == (1, 2)}

    def test_the_ends_of_all_branches_are_known(self) -> None:
        space = self.SPACE
        assert space.smallest().values == (1, 1, 8, 8, 3)
        assert space.largest().values == (2, 2, 24, 8, 3)
        assert [end.values for end in space.ends()] == [
            (1, 1, 8, 8, 3), (2, 1, 24, 8, 3), (1, 2, 24, 4, 2), (2, 2, 24, 8, 3),
        ]  # fmt: skip
        assert space.branches() == ({"head": 2}, {"head": 1})

    def test_genes_of_other_branches_may_be_left_out_and_cannot_be_varied(self) -> None:
        space = self.SPACE
        assert space.from_dict({"depth": 2, "head": 1, "a_width": 16}).values == (2, 1, 16, 8, 3)
        assert space.from_dict({"depth": 2, "head": 1, "a_width": 16, "b_width": 4}).values == (2, 1, 16, 8, 3)
        assert space.from_dict({"depth": 2}) == space.largest()
        with pytest.raises(ArchError, match="without effect"):
            space.validate(Arch("heads", space.names, (2, 1, 16, 4, 3)))

    def test_a_space_without_branches_has_one(self, space: SearchSpace) -> None:
        assert space.branches() == ({},)
        assert space.ends() == (space.smallest(), space.largest())
        assert space.branch_of(space.largest()) is None

    def test_conditions_that_contradict_each_other_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="depend on one gene"):
            Gene("x", (1, 2), needs=("depth", 2), only_with=("head", 1))
        with pytest.raises(ConfigError, match="at most one branch"):
            SearchSpace("two", (*self.SPACE.genes, Gene("x", (1, 2), only_with=("depth", 1))))
        with pytest.raises(ConfigError, match="needs no other"):
            SearchSpace("chain", (*self.SPACE.genes, Gene("x", (1, 2), only_with=("a_width", 8))))
