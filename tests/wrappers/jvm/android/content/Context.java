package android.content;

import android.content.res.AssetManager;
import java.io.File;

/** An app whose assets and files lie in two folders. */
public class Context {
  private final File assets;
  private final File files;

  public Context(File assets, File files) {
    this.assets = assets;
    this.files = files;
  }

  public AssetManager getAssets() {
    return new AssetManager(assets);
  }

  public File getFilesDir() {
    return files;
  }
}
