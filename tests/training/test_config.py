import pytest

import train
from utils.training.config import SparsityConfig, TrainConfig
from utils.training.options import complete_sparsity


def config_of(*words):
    args = train.get_args_parser().parse_args([*words])
    args.learning_rate, args.img_size, args.precision = 0.01, 416, "full"  # which depend on weights, cfg and device
    complete_sparsity(args)
    return TrainConfig.from_options(args)


def test_the_defaults_are_those_of_the_options():
    config, by_default = vars(config_of()), vars(TrainConfig())
    names = {"model_def", "data_config"}
    assert {k: v for k, v in config.items() if k not in names} == {
        k: v for k, v in by_default.items() if k not in names
    }


@pytest.mark.parametrize(("epochs", "before"), [(1, 0), (2, 1), (5, 1), (30, 3)])
def test_a_run_from_scratch_trains_before_and_after_its_cut(epochs, before):
    assert config_of("-sr", "--epochs", str(epochs)).sparsity.cut_epoch == before


@pytest.mark.parametrize(
    ("words", "sparsity"),
    [
        ([], None),
        (["-sr"], SparsityConfig(schedule="cut", cut_epoch=10)),
        (["-sr", "--s", "0.3", "--s_schedule", "constant"], SparsityConfig(s=0.3)),
        (["-sr", "--target_percent", "0.6"], SparsityConfig(schedule="cut", ratio=0.6, cut_epoch=10)),
        (["-sr", "--target_macs", "0.1"], SparsityConfig(schedule="cut", target_macs=0.1, cut_epoch=10)),
        (["-sr", "--target_params", "0.1"], SparsityConfig(schedule="cut", target_params=0.1, cut_epoch=10)),
        (["-sr", "--s_schedule", "target"], SparsityConfig(schedule="target")),
        (["-sr", "--sr_method", "subgradient"], SparsityConfig(schedule="local", method="subgradient")),
    ],
)
def test_there_is_a_penalty_only_where_it_is_asked_for(words, sparsity):
    assert config_of(*words).sparsity == sparsity


def test_options_are_in_the_config_by_their_names():
    config = config_of("--epochs", "7", "--accumulate", "2", "-sr", "--strategy", "slim", "--prune_every", "3")
    assert (config.epochs, config.accumulate, config.strategy, config.prune_every) == (7, 2, "slim", 3)
    with pytest.raises(AttributeError):
        config.epochs = 8


def test_every_option_is_in_a_group_with_a_help_text():
    parser = train.get_args_parser()
    titles = ["data", "network", "optimisation", "sparsity", "pruning while training", "distillation", "run"]
    groups = [group for group in parser._action_groups if group.title in titles]
    assert [group.title for group in groups] == titles
    grouped = {action.dest for group in groups for action in group._group_actions}
    assert {action.dest for action in parser._actions} - grouped == {"help", "debug"}
    assert all(action.help for action in parser._actions)
