# The image of the command line, for those who build with a container engine. `cargo xtask image` writes the same without one.
#   cargo xtask image && docker build -f deploy/images/cli.Dockerfile --build-context programs=TARGET/images/programs .
FROM scratch
COPY --from=programs /ambit /ambit
ENTRYPOINT ["/ambit"]
