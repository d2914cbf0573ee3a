package __PACKAGE__

import android.content.Context
import com.google.ai.edge.litert.Accelerator
import java.io.Closeable

/** The model __NAME__, written by edgedl. Not for several threads at once. */
class __MODEL__ internal constructor(private val runner: Runner) : Closeable {
    /** The model in the app, on this [accelerator]; where LiteRT refuses it, on the CPU, and [fallback] says why. */
    constructor(context: Context, accelerator: Accelerator = Accelerator.__ACCELERATOR__) :
        this(Runner(context.assets, "__ASSETS__", accelerator))

    /** What runs the model. */
    val accelerator: Accelerator get() = runner.accelerator

    /** Why it is not the accelerator asked for, else null. */
    val fallback: String? get() = runner.fallback

    /** The version of the package. */
    val version: String get() = runner.version

    /** Class names in the order of the output's values; empty where the package has none. */
    val labels: List<String> get() = runner.labels

__PREDICT__

    /** The best labels of one output's values, best first. One value with two labels is the probability of the second. */
    fun top(values: FloatArray, count: Int = 1): List<Scored> = runner.top(values, count)

    /** Runs the golden inputs of the package here and compares with the golden outputs. */
    fun selfTest(): SelfTest = runner.selfTest()

    override fun close() = runner.close()
}
__OUTPUTS__