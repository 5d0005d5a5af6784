"""The stages of a build, one a file; `build.stage.chain` has them in order."""
