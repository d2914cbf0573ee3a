package __PACKAGE__

import android.content.Context
import com.google.ai.edge.litert.Accelerator
import java.io.File

/**
 * Newer packages of this model, beside the one in the app. A package is checked (signature, hashes, the same inputs and
 * outputs, self-test on this device) before it is swapped in, and the swap is one rename.
 */
class ModelStore(context: Context) {
    private val store = Store(context.filesDir, context.assets, "__ASSETS__", "__KEY__")

    /** Why the last [open] gave the model in the app although another is installed, else null. */
    val fallback: String? get() = store.fallback

    /** The installed model where it is whole, loads and is no older than the one in the app, else that one. */
    fun open(accelerator: Accelerator = Accelerator.__ACCELERATOR__): __MODEL__ = __MODEL__(store.open(accelerator))

    /** Installs a package file (.zip or .aar). Throws [RejectedPackageException]; then nothing has changed. */
    fun install(file: File, accelerator: Accelerator = Accelerator.__ACCELERATOR__): SelfTest =
        store.install(file, accelerator)

    /** Back to the model in the app. */
    fun clear() = store.clear()
}
