"""The console scripts: clrun, clrun-report, clrun-predict, clrun-export, clrun-tune, clrun-verify."""
