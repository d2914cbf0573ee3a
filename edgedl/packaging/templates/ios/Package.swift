// swift-tools-version: 5.7
import PackageDescription

let package = Package(
    name: "__MODULE__",
    platforms: [.iOS(.v13)],
    products: [.library(name: "__MODULE__", targets: ["__MODULE__"])],
    dependencies: [
        .package(url: "https://github.com/microsoft/onnxruntime-swift-package-manager", from: "__RUNTIME__")
    ],
    targets: [
        .target(
            name: "__MODULE__",
            dependencies: [.product(name: "onnxruntime", package: "onnxruntime-swift-package-manager")],
            resources: [.copy("Content")]
        )
    ]
)
