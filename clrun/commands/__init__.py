"""The console scripts: clrun, clrun-report, clrun-predict, clrun-tune, clrun-verify."""
