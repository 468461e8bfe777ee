"""The command-line flags, which are those of Hydra and --json."""

FLAGS = {  # flag: (its short form, what it does)
    "--help": ("-h", "this page"),
    "--multirun": ("-m", "run every combination of comma-separated values"),
    "--cfg": ("-c", "show the configuration instead of running it: --cfg job"),
    "--resolve": ("", "with --cfg, show interpolations resolved"),
    "--package": ("-p", "with --cfg, show one section only"),
    "--info": ("-i", "show where the configuration comes from: --info defaults"),
    "--config-dir": ("-cd", "add a folder with options of your own"),
    "--config-path": ("-cp", "use another folder instead of conf/"),
    "--config-name": ("-cn", "use another file instead of config.yaml"),
    "--shell-completion": ("-sc", 'complete with the Tab key: eval "$(python run.py -sc install=bash)"'),
    "--run": ("-r", "run once, which is the default"),
    "--json": ("", "print one line of JSON and nothing else: for comparisons, verdicts and the ledger"),
    "--hydra-help": ("", "help of Hydra itself"),
    "--version": ("", "Hydra's version"),
}
