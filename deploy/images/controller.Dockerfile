# The image of the controller, for those who build with a container engine. `cargo xtask image` writes the same without one.
#   cargo xtask image && docker build -f deploy/images/controller.Dockerfile --build-context programs=TARGET/images/programs .
FROM scratch
COPY --from=programs /controller /controller
ENTRYPOINT ["/controller"]
