package __PACKAGE__;

import android.content.res.AssetManager;
import com.google.ai.edge.litert.Accelerator;
import com.google.ai.edge.litert.CompiledModel;
import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import org.json.JSONException;
import org.json.JSONObject;

/** The files of a package: assets of the app, or a folder where assets is null. */
final class Files {
  static final String MANIFEST = "manifest.json";
  private final AssetManager assets;
  final String folder; // with a slash at its end

  Files(AssetManager assets, String folder) {
    this.assets = assets;
    this.folder = folder;
  }

  byte[] read(String name) throws IOException {
    return all(assets == null ? new FileInputStream(folder + name) : assets.open(folder + name), Long.MAX_VALUE);
  }

  JSONObject json(String name) throws IOException, JSONException {
    return new JSONObject(new String(read(name), StandardCharsets.UTF_8));
  }

  /** LiteRT with a model, which it maps where it lies. */
  CompiledModel compile(String name, Accelerator accelerator) {
    CompiledModel.Options options = new CompiledModel.Options(accelerator);
    if (assets == null) return CompiledModel.create(folder + name, options);
    return CompiledModel.create(assets, folder + name, options);
  }

  /** The bytes of a stream, which is closed then; at most so many. */
  static byte[] all(InputStream in, long most) throws IOException {
    ByteArrayOutputStream out = new ByteArrayOutputStream();
    byte[] block = new byte[65536];
    try {
      for (int n = in.read(block); n >= 0 && out.size() <= most; n = in.read(block)) out.write(block, 0, n);
    } finally {
      in.close();
    }
    if (out.size() > most) throw new IOException("too large");
    return out.toByteArray();
  }
}
