"""The flags of the command line, which are Hydra's."""

FLAGS = {  # flag: (its short form, what it does)
    "--help": ("-h", "this page"),
    "--multirun": ("-m", "run every combination of the values given, separated by commas"),
    "--cfg": ("-c", "show the configuration instead of running it: --cfg job"),
    "--resolve": ("", "with --cfg, show references resolved"),
    "--package": ("-p", "with --cfg, show one part of it"),
    "--info": ("-i", "show where the configuration comes from: --info defaults"),
    "--config-dir": ("-cd", "add a folder with options of your own"),
    "--config-path": ("-cp", "take another folder than conf/"),
    "--config-name": ("-cn", "start from another file than config.yaml"),
    "--shell-completion": ("-sc", 'let the Tab key complete: eval "$(python run.py -sc install=bash)"'),
    "--run": ("-r", "run once, which is the default"),
    "--hydra-help": ("", "what Hydra itself offers"),
    "--version": ("", "Hydra's version"),
}
