"""A build: one model in, one folder of artifacts out.

Data flows through the stages from left to right. Each takes the build so far (`state.Build`), adds what it gives, and
hands it on; nothing is changed in place but the module that `recover` trains.

    recipe ─┐
    model ──┤
    data ───┴► load ─► trace ─► score ─► allocate ─► learn ─► remove ─► assign ─► recover ─┐
               model   graph    scores   plan        plan     module    patterns  module   │
               data    checks            found       learned  checks    found     recovery │
                                                                                           │
    report ◄─ measure ◄─ verify ◄─ sparse ◄─────────── export ◄───────────── quantize ◄────┘
    report.json rows     checks    model.sparse.onnx   model.int8.xml        model.fp32.onnx
    report.html timings            artifacts           model.pt2             model.int8.onnx
    manifest    certificate                            weights.safetensors   artifacts

    stage.py      what a stage is, and what it declares: `needs` `reads` `saves` `writes` `fatal` `validate`
    stages/       the stages, one file each; a file more is a stage more
    pipeline.py   the driver: it orders the stages by their needs and knows none by name
    resume.py     what an earlier run finished, and which recipe may go on from it
    folder.py     the build folder: files appear whole or not at all, and none of another's is touched
    state.py      what stages hand on; results.py has the records among it

A stage whose `saves` are what an earlier run wrote is restored instead of run, until the first one that has to run
again. Where a resumed build changes a key of the recipe, that is the first stage that `reads` it. All times come from
one clock (`latency.clock`). What several stages share lies beside these files, by its concept: feeds, artifacts,
criterion, allocation, promise and the rest; no stage imports another.
"""
